// Runs grids of emulated kernels: what the emulated driver asks of the machine.
#pragma once
#include "abi.h"
#include <string>

namespace perjoule {

struct Launch {
    const char* name;
    Entry entry;
    Index grid, block, cluster;
    unsigned dynamic_shared;
    // Whether all blocks must be resident at once.
    bool cooperative;
    void** parameters;
};

enum class Outcome { done, fault, trap };

// Runs all blocks; `why` says what went wrong: a bad address, a deadlock, a trap.
Outcome run(const Launch& launch, std::string& why);

// Says which allocation an address is beside; the driver's.
std::string describe(const void* address);

}  // namespace perjoule
