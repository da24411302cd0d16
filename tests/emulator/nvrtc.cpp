// libnvrtc.so.13 without NVIDIA's: compiles CUDA C++ with g++ for the emulated driver. What stands for a CUBIN is a shared library.
//
// PERJOULE_EMULATED_FAULT: `nvrtc` makes every compilation fail, `builtins` as if libnvrtc-builtins were missing.
// PERJOULE_EMULATED_KEEP=<folder> keeps what was compiled.

#include "translate.h"
#include <cstdio>
#include <cstring>
#include <dlfcn.h>
#include <fcntl.h>
#include <fstream>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef PERJOULE_EMULATOR
#error "PERJOULE_EMULATOR: the folder of simt.h"
#endif

namespace {

using std::string;
using std::vector;

enum Result {
    SUCCESS,
    OUT_OF_MEMORY,
    CREATION,
    INVALID_INPUT,
    INVALID_PROGRAM,
    INVALID_OPTION,
    COMPILATION,
    BUILTIN,
    NO_NAME = 9,
    INTERNAL = 11
};

struct Program {
    string source, name, log, cubin;
    vector<std::pair<string, string>> headers;
    bool compiled = false;
};

struct Folder {
    string path;
    Folder() {
        const char* base = getenv("TMPDIR");
        path = string(base ? base : "/tmp") + "/perjoule-nvrtc-XXXXXX";
        if (mkdtemp(path.data()) == nullptr) path.clear();
    }
    ~Folder() {
        if (path.empty()) return;
        const string command = "rm -rf '" + path + "'";
        if (system(command.c_str()) != 0) perror("emulator: rm");
    }
};

string read(const string& path) {
    std::ifstream file(path, std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
}

void write(const string& path, const string& text) {
    for (size_t slash = path.find('/', 1); slash != string::npos; slash = path.find('/', slash + 1))
        mkdir(path.substr(0, slash).c_str(), 0777);
    std::ofstream(path, std::ios::binary) << text;
}

// Runs a program and adds what it writes to the log.
bool execute(const vector<string>& command, const string& folder, string& log) {
    const string output = folder + "/log";
    const pid_t child = fork();
    if (child == 0) {
        vector<char*> arguments;
        for (const string& a : command) arguments.push_back(const_cast<char*>(a.c_str()));
        arguments.push_back(nullptr);
        const int file = open(output.c_str(), O_CREAT | O_WRONLY | O_TRUNC, 0600);
        dup2(file, 1);
        dup2(file, 2);
        unsetenv("LD_LIBRARY_PATH");
        execvp(arguments[0], arguments.data());
        _exit(127);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) < 0) return false;
    log += read(output);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 127) log += "g++ could not be started\n";
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

bool faulty(const char* which) {
    const char* fault = getenv("PERJOULE_EMULATED_FAULT");
    return fault && strcmp(fault, which) == 0;
}

Result compile(Program& p, const vector<string>& options) {
    if (faulty("builtins")) {
        p.log =
            "nvrtc: error: failed to open libnvrtc-builtins.so.13.0.\n  Make sure that libnvrtc-builtins.so.13.0 is installed correctly.";
        return BUILTIN;
    }
    if (faulty("nvrtc")) {
        p.log = p.name + "(1): error: this compiler was told to fail\n\n1 error detected in the compilation of \"" + p.name + "\".\n";
        return COMPILATION;
    }
    int arch = 75;
    string feature;
    // definitions come after our own headers, which they must not change
    string definitions;
    vector<string> given;
    const auto define = [&](const string& text) {
        const size_t equals = text.find('=');
        definitions += "#define " + text.substr(0, equals) + " " + (equals == string::npos ? "1" : text.substr(equals + 1)) + "\n";
    };
    for (size_t i = 0; i < options.size(); i++) {
        string o = options[i], value;
        const auto takes = [&](const char* name) {
            const string n = name;
            if (o.compare(0, n.size() + 1, n + "=") == 0)
                value = o.substr(n.size() + 1);
            else if (o == n && i + 1 < options.size())
                value = options[++i];
            else
                return false;
            return true;
        };
        if (takes("--gpu-architecture") || takes("-arch")) {
            const size_t digits = value.find_first_of("0123456789");
            arch = digits == string::npos ? 0 : atoi(value.c_str() + digits);
            feature = value.find_last_of("af") == value.size() - 1 ? value.substr(value.size() - 1) : "";
            if (arch < 75 || arch > 121) {
                p.log = "nvrtc: error: invalid value for --gpu-architecture (-arch)\n";
                return INVALID_OPTION;
            }
        } else if (takes("--define-macro") || takes("-D")) {
            define(value);
        } else if (takes("--include-path") || takes("-I")) {
            given.push_back("-I" + value);
        } else if (o.compare(0, 2, "-D") == 0) {
            define(o.substr(2));
        } else if (o.compare(0, 2, "-I") == 0) {
            given.push_back(o);
        } else if (takes("--std") || takes("-std") || takes("--ptxas-options") || takes("-Xptxas") || takes("--maxrregcount") ||
                   takes("--fmad") || takes("--ftz") || takes("--prec-div") || takes("--prec-sqrt") || takes("--diag-suppress") ||
                   takes("--extra-device-vectorization") || takes("--split-compile") || takes("--minimal")) {
        } else if (o == "-default-device" || o == "--device-as-default-execution-space" || o == "--extra-device-vectorization" ||
                   o == "--use_fast_math" || o == "-use_fast_math" || o == "--generate-line-info" || o == "-lineinfo" ||
                   o == "--restrict" || o == "-w" || o == "--disable-warnings" || o == "--no-source-include" || o == "--minimal" ||
                   o == "-minimal" || o == "--display-error-number") {
        } else {
            p.log = "nvrtc: error: unrecognized option " + o + " found\n";
            return INVALID_OPTION;
        }
    }
    Folder folder;
    if (folder.path.empty()) return INTERNAL;
    const string emulator = PERJOULE_EMULATOR;
    write(folder.path + "/source/" + p.name, p.source);
    for (const auto& [name, text] : p.headers) write(folder.path + "/source/" + name, text);
    define("__CUDA_ARCH__=" + std::to_string(arch * 10));
    if (!feature.empty()) define("__CUDA_ARCH_FEAT_SM" + std::to_string(arch) + "_ALL");
    write(folder.path + "/first.h", "#include \"" + emulator + "/simt.h\"\n" + definitions);
    vector<string> command{
        "g++", "-E", "-x", "c++", "-std=c++17", "-w", "-I" + folder.path + "/source", "-include", folder.path + "/first.h"};
    command.insert(command.end(), given.begin(), given.end());
    for (const char* s : {"-o", "unit.ii"}) command.push_back(s[0] == '-' ? s : folder.path + "/" + s);
    command.push_back(folder.path + "/source/" + p.name);
    if (!execute(command, folder.path, p.log)) return COMPILATION;
    try {
        const string unit = read(folder.path + "/unit.ii");
        perjoule::translate::Rewriter rewriter(unit, emulator);
        string text = rewriter.rewritten();
        text += "extern \"C\" __attribute__((visibility(\"default\"))) const int perjoule_architecture = " + std::to_string(arch) +
                ", perjoule_specific = " + (feature.empty() ? "0" : "1") + ";\n";
        write(folder.path + "/unit.cpp", text);
    } catch (const std::exception& error) {
        p.log += p.name + ": error: " + error.what() + "\n";
        return COMPILATION;
    }
    command = {"g++",
               "-x",
               "c++-cpp-output",
               "-std=c++17",
               "-O2",
               "-w",
               "-march=native",
               "-fPIC",
               "-shared",
               "-fvisibility=hidden",
               "-fno-gnu-unique",
               "-fno-strict-aliasing",
               "-fwrapv",
               "-fno-exceptions",
               "-fno-rtti",
               "-fno-asynchronous-unwind-tables",
               "-fno-stack-protector",
               "-Wno-psabi",
               "-fnon-call-exceptions",
               "-s",
               "-o",
               folder.path + "/unit.so",
               folder.path + "/unit.cpp",
               "-lm"};
    const bool done = execute(command, folder.path, p.log);
    if (const char* keep = getenv("PERJOULE_EMULATED_KEEP")) {
        static int number = 0;
        const string to =
            string(keep) + "/" + std::to_string(getpid()) + "-" + std::to_string(number++) + "-" + p.name.substr(p.name.rfind('/') + 1);
        write(to + ".cpp", read(folder.path + "/unit.cpp"));
    }
    if (!done) return COMPILATION;
    p.cubin = read(folder.path + "/unit.so");
    p.compiled = true;
    return SUCCESS;
}

}  // namespace

#define API extern "C" __attribute__((visibility("default")))

API const char* nvrtcGetErrorString(int result) {
    switch (result) {
        case SUCCESS:
            return "NVRTC_SUCCESS";
        case OUT_OF_MEMORY:
            return "NVRTC_ERROR_OUT_OF_MEMORY";
        case CREATION:
            return "NVRTC_ERROR_PROGRAM_CREATION_FAILURE";
        case INVALID_INPUT:
            return "NVRTC_ERROR_INVALID_INPUT";
        case INVALID_PROGRAM:
            return "NVRTC_ERROR_INVALID_PROGRAM";
        case INVALID_OPTION:
            return "NVRTC_ERROR_INVALID_OPTION";
        case COMPILATION:
            return "NVRTC_ERROR_COMPILATION";
        case BUILTIN:
            return "NVRTC_ERROR_BUILTIN_OPERATION_FAILURE";
        case NO_NAME:
            return "NVRTC_ERROR_NO_NAME_EXPRESSIONS_AFTER_COMPILATION";
        default:
            return "NVRTC_ERROR_INTERNAL_ERROR";
    }
}

API int nvrtcVersion(int* major, int* minor) {
    *major = 13;
    *minor = 0;
    return SUCCESS;
}

static const int ARCHITECTURES[] = {75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121};

API int nvrtcGetNumSupportedArchs(int* count) {
    *count = int(sizeof ARCHITECTURES / sizeof *ARCHITECTURES);
    return SUCCESS;
}

API int nvrtcGetSupportedArchs(int* list) {
    memcpy(list, ARCHITECTURES, sizeof ARCHITECTURES);
    return SUCCESS;
}

API int nvrtcCreateProgram(void** program, const char* source, const char* name, int count, const char* const* headers,
                           const char* const* names) {
    if (program == nullptr || source == nullptr) return INVALID_INPUT;
    auto* p = new Program;
    p->source = source;
    p->name = name && *name ? name : "default_program";
    for (int i = 0; i < count; i++) p->headers.emplace_back(names[i], headers[i]);
    *program = p;
    return SUCCESS;
}

API int nvrtcDestroyProgram(void** program) {
    if (program == nullptr || *program == nullptr) return INVALID_PROGRAM;
    delete static_cast<Program*>(*program);
    *program = nullptr;
    return SUCCESS;
}

API int nvrtcCompileProgram(void* program, int count, const char* const* options) {
    if (program == nullptr) return INVALID_PROGRAM;
    return compile(*static_cast<Program*>(program), vector<string>(options, options + count));
}

static int give_size(const string& text, size_t* size, bool terminated) {
    *size = text.size() + (terminated ? 1 : 0);
    return SUCCESS;
}

API int nvrtcGetProgramLogSize(void* p, size_t* size) { return p ? give_size(static_cast<Program*>(p)->log, size, true) : INVALID_PROGRAM; }
API int nvrtcGetProgramLog(void* p, char* log) {
    if (p == nullptr) return INVALID_PROGRAM;
    const string& text = static_cast<Program*>(p)->log;
    memcpy(log, text.c_str(), text.size() + 1);
    return SUCCESS;
}
API int nvrtcGetCUBINSize(void* p, size_t* size) { return p ? give_size(static_cast<Program*>(p)->cubin, size, false) : INVALID_PROGRAM; }
API int nvrtcGetCUBIN(void* p, char* bytes) {
    if (p == nullptr || !static_cast<Program*>(p)->compiled) return INVALID_PROGRAM;
    const string& text = static_cast<Program*>(p)->cubin;
    memcpy(bytes, text.data(), text.size());
    return SUCCESS;
}
API int nvrtcGetPTXSize(void* p, size_t* size) { return nvrtcGetCUBINSize(p, size); }
API int nvrtcGetPTX(void* p, char* bytes) { return nvrtcGetCUBIN(p, bytes); }
API int nvrtcAddNameExpression(void*, const char*) { return SUCCESS; }
API int nvrtcGetLoweredName(void*, const char*, const char**) { return NO_NAME; }
