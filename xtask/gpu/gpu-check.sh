#!/usr/bin/env bash
# Tries a device: conformance, golden models, kernels against vendors' rows, tuning, tokens and joules, compute-sanitizer.
#
# Needs the binaries beside it (or named by options), bash, coreutils, awk and grep; neither Rust nor Python. It writes a folder: summary.md,
# records.jsonl (perjoule's records), conformance.jsonl (a line a kernel), tuning.json, and logs/. Parts share the budget by their weights, each
# is stopped when its time is over, and the summary is written whatever became of them.
#
# Exit code: 0 all parts passed or were skipped for a stated reason; 1 a part failed or did not end in its time; 2 wrong usage.
set -u
export LC_ALL=C

usage() {
    cat <<'TEXT'
usage: gpu-check.sh [options]
  --device ID         device to try [cuda:0]
  --out DIR           folder to write [gpu-check]
  --budget SECONDS    time for all parts together [1800]
  --parts LIST        of conformance,check,models,kernels,tune,tokens,sanitizer, in that order [all but check, whose cases are conformance's]
  --filter TEXT       conformance, check and sanitizer: only kernels whose name contains it
  --shapes REGEX      kernels: only lines "op dtype shape" that match
  --kernel NAME|all   kernels: that row or all, instead of the chosen one
  --models LIST       tokens: names or folders of models, each with :dtype or not [llama-3.2-1b:bf16,llama-3.1-8b:bf16,llama-3.1-8b:q4_k]
  --tools LIST        sanitizer: memcheck, racecheck, synccheck, initcheck [memcheck,racecheck]
  --cases N           sanitizer: cases of each kernel [4; of racecheck 2]
  --jobs N            processes side by side [processors, 16 at most]
  --perjoule FILE, --conformance FILE, --checkpoints DIR   [beside this script]
TEXT
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
all_parts=conformance,check,models,kernels,tune,tokens,sanitizer
device=cuda:0 out=gpu-check budget=1800 parts=conformance,models,kernels,tune,tokens,sanitizer filter='' shapes='' kernel=''
models=llama-3.2-1b:bf16,llama-3.1-8b:bf16,llama-3.1-8b:q4_k
tools=memcheck,racecheck cases='' perjoule=$here/perjoule conformance=$here/conformance checkpoints=$here/checkpoints
jobs=$(nproc) && jobs=$((jobs < 16 ? jobs : 16))

while [ $# -gt 0 ]; do
    case $1 in
    -h | --help) usage && exit 0 ;;
    --device | --out | --budget | --parts | --filter | --shapes | --kernel | --models | --tools | --cases | --jobs | --perjoule | --conformance | --checkpoints)
        [ $# -ge 2 ] || { echo "$1 needs a value" >&2 && exit 2; }
        printf -v "${1#--}" %s "$2" && shift 2 ;;
    *) echo "unknown option $1" >&2 && usage >&2 && exit 2 ;;
    esac
done
for number in "$budget" "$jobs" "${cases:-1}"; do
    case $number in '' | *[!0-9]* | 0) echo "expected a whole number above 0, not '$number'" >&2 && exit 2 ;; esac
done
for part in ${parts//,/ }; do
    case ,$all_parts, in *,"$part",*) ;; *) echo "no part '$part': $all_parts" >&2 && exit 2 ;; esac
done
for file in "$perjoule" "$conformance"; do
    [ -x "$file" ] || { echo "$file is missing" >&2 && exit 2; }
done

mkdir -p "$out/logs" || exit 2
out=$(cd "$out" && pwd)
perjoule=$(realpath "$perjoule") conformance=$(realpath "$conformance")
sections=$out/logs/sections && rm -rf "$sections" && mkdir "$sections"
verdicts=$sections/verdicts && : >"$verdicts"
# What `tune` measured is used by the parts after it, and comes back with the rest.
[ ! -f "$out/tuning.json" ] || export PERJOULE_TUNING=$out/tuning.json
SECONDS=0 failed=0 end=$budget

say() { printf '[%4d s] %s\n' "$SECONDS" "$*"; }
left() { echo $((end - SECONDS > 0 ? end - SECONDS : 0)); }
# limited SECONDS COMMAND..: stopped like by Ctrl-C, so that what is finished is kept, and killed when that does not help
limited() { timeout --signal=INT --kill-after=10 "$@"; }
# verdict PART ok|FAILED|skipped WORDS
verdict() {
    printf '| %s | %s | %s s | %s |\n' "$1" "$2" $((SECONDS - began)) "$3" >>"$verdicts"
    say "$1: $2: $3"
    [ "$2" != FAILED ] || failed=1
}
# how COMMAND ended, by its exit code
ended() { case $1 in 124 | 137) echo 'did not end in its time' ;; *) echo "exit code $1" ;; esac }

# The cases of the device that the conformance runner makes, one a line: device::kernel::config::case.
listed() { "$conformance" --list "$device::" 2>>"$out/logs/list.err" | sed -n "s/: test$//p" | grep -F "::" | grep -F "$device::" | grep -F -e "$filter"; }

# A line "passed failed ignored" out of what a test executable wrote. Lines of tests count where it did not come to its own.
counts() { awk '/^test .* \.\.\. ok/{p++} /^test .* \.\.\. FAILED/{f++} /^test .* \.\.\. ignored/{i++} END{print p+0, f+0, i+0}' "$1"; }

# One kernel's cases in a process of their own: a fault on the device takes the rest of a process with it.
conformance_of() {
    local kernel=$1 log=$out/logs/conformance/$1.log start=$EPOCHREALTIME rc passed failed ignored
    limited "$2" "$conformance" --color never --test-threads 2 "$device::$kernel::" >"$log" 2>&1
    rc=$?
    read -r passed failed ignored < <(counts "$log")
    printf '{"kernel":"%s","passed":%d,"failed":%d,"ignored":%d,"ended":%s,"seconds":%.1f}\n' "$kernel" "$passed" "$failed" "$ignored" \
        "$([ $rc -le 1 ] || [ $rc -eq 101 ] && echo true || echo false)" "$(awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN{print b-a}')"
}

part_conformance() {
    local list=$out/logs/cases.txt kernels limit=$1
    mkdir -p "$out/logs/conformance"
    listed >"$list"
    if [ ! -s "$list" ]; then
        limited 60 "$conformance" --color never device >"$out/logs/absent.log" 2>&1
        { echo '```' && grep -v '^$' "$out/logs/list.err" "$out/logs/absent.log" | head -20 && echo '```'; } >>"$section"
        verdict conformance FAILED "no case for $device${filter:+ and $filter}: is the device there?" && return
    fi
    # kernels with many cases first, so that none is waited for alone
    awk -F:: '{n[$2]++} END{for (k in n) print n[k], k}' "$list" | sort -rn | cut -d' ' -f2 >"$out/logs/kernels.txt"
    kernels=$(wc -l <"$out/logs/kernels.txt")
    export -f conformance_of limited counts
    export out device conformance
    local deadline=$((EPOCHSECONDS + limit))
    export deadline
    # shellcheck disable=SC2016 # the inner shell expands it
    xargs -P "$jobs" -I{} bash -c 'left=$((deadline - EPOCHSECONDS)); [ $left -le 0 ] || conformance_of {} $left' \
        <"$out/logs/kernels.txt" >"$out/conformance.jsonl"
    local total passed wrong ignored bad lacking
    total=$(wc -l <"$list")
    read -r passed wrong ignored bad < <(awk -F'[:,}]' '{p+=$4; f+=$6; i+=$8; if ($6 > 0 || $10 == "false") b++} END{print p+0, f+0, i+0, b+0}' "$out/conformance.jsonl")
    lacking=$((kernels - $(wc -l <"$out/conformance.jsonl")))
    {
        echo "$total cases of $kernels kernels: $passed passed, $wrong failed, $ignored skipped with a reason; $lacking kernels were not reached."
        if [ "$bad" -gt 0 ]; then
            printf '\n| kernel | passed | failed | skipped | ended | s |\n|---|---|---|---|---|---|\n'
            awk -F'[:,}]' '$6 > 0 || $10 == "false" {gsub(/"/, "", $2); print "| " $2 " | " $4 " | " $6 " | " $8 " | " $10 " | " $12 " |"}' "$out/conformance.jsonl"
            printf '\nFirst failures:\n\n```\n'
            # two of each kernel
            awk 'FNR == 1 {n = 0; left = 0} /^---- .* ----$/ {left = ++n > 2 ? 0 : 8} /^failures:/ {left = 0} left > 0 && NF {print; left--}' \
                "$out"/logs/conformance/*.log | cut -c1-240 | head -150
            echo '```'
        fi
        printf '\nSkipped, by reason:\n\n```\n'
        grep -h '\.\.\. ignored' "$out"/logs/conformance/*.log | sed 's/^.*\.\.\. ignored,* *//' | sort | uniq -c | sort -rn | head -20
        echo '```'
    } >>"$section"
    local words="$passed of $total cases passed, $wrong failed, $ignored skipped"
    if [ "$bad" -gt 0 ] || [ "$lacking" -gt 0 ] || [ "$passed" -eq 0 ]; then
        verdict conformance FAILED "$words; $bad kernels with failures, $lacking not reached"
    else
        verdict conformance ok "$words"
    fi
}

part_check() {
    local log=$out/logs/check.txt rc seconds=$(($1 > 20 ? $1 - 10 : $1))
    limited "$1" "$perjoule" check --device "$device" --budget "$seconds" ${filter:+--kernel "$filter"} --quiet >"$log" 2>&1
    rc=$?
    { echo '```' && grep -E 'FAILED|cases passed|^error' "$log" | cut -c1-240 | head -40 && echo '```'; } >>"$section"
    if [ $rc -eq 0 ]; then verdict check ok "$(tail -1 "$log")"; else verdict check FAILED "$(ended $rc): $(tail -1 "$log" | cut -c1-160)"; fi
}

# One checkpoint's logits, as a line of the table. `x` before it where it failed.
model_of() {
    local dtype=${1%% *} model=${1#* } name log rc
    name=$(basename "$model") log=$out/logs/model-$name-$dtype.txt
    limited "$2" "$perjoule" check --model "$model" --device "$device" --dtype "$dtype" --quiet >"$log" 2>&1
    rc=$?
    if [ $rc -eq 0 ]; then
        echo "| $name | $dtype | $(awk '$1 == "prefill" {print "relative error " $2}' "$log") |"
    else
        echo "x| $name | $dtype | $(tail -1 "$log" | cut -c1-200) |"
    fi
}

part_models() {
    local deadline=$((EPOCHSECONDS + $1)) rows=$out/logs/models.txt wrong count
    [ -d "$checkpoints" ] || { verdict models skipped "no folder of checkpoints: $checkpoints" && return; }
    export deadline perjoule device out
    export -f model_of limited
    count=$(find "$checkpoints" -name expected.safetensors | wc -l)
    for dtype in f32 bf16; do find "$checkpoints" -name expected.safetensors -printf "$dtype %h\n" | sort; done |
        xargs -P $((jobs < 4 ? jobs : 4)) -I{} bash -c 'left=$((deadline - EPOCHSECONDS)); [ $left -le 0 ] || model_of "{}" $left' >"$rows"
    printf '| checkpoint | dtype | |\n|---|---|---|\n' >>"$section"
    sed 's/^x//' "$rows" | sort -t'|' -k3,3r -k2,2 >>"$section"
    wrong=$(grep -c '^x' "$rows")
    local tried words
    tried=$(wc -l <"$rows") words="$(($(wc -l <"$rows") - wrong)) passed, $wrong failed, $((2 * count - tried)) not reached"
    if [ "$wrong" -gt 0 ] || [ "$tried" -lt $((2 * count)) ] || [ "$count" -eq 0 ]; then verdict models FAILED "$words"; else verdict models ok "$words"; fi
}

# What kernels are measured, most telling first: op, dtype, shapes. Those of a line share a process.
shape_list() {
    cat <<'TEXT'
matmul bf16 m=8192,n=8192,k=8192 m=4096,n=4096,k=4096 m=2048,n=2048,k=2048 m=4096,n=14336,k=4096
attention bf16 b=1,q=8192,kv=8192,h=64,hkv=8,d=128 b=1,q=1,kv=8192,h=64,hkv=8,d=128 b=1,q=1,kv=2048,h=64,hkv=8,d=128
matmul bf16 m=1,n=4096,k=4096 m=1,n=28672,k=4096 m=16,n=28672,k=4096 m=64,n=28672,k=4096
matmul f8e4m3 m=8192,n=8192,k=8192 m=4096,n=4096,k=4096 m=4096,n=14336,k=4096
rms_norm bf16 rows=8192,len=8192
gated bf16 rows=8192,len=14336
softmax bf16 rows=8192,len=8192
rope bf16 tokens=8192,h=32,d=128
matmul q4_k m=1,n=28672,k=4096 m=16,n=28672,k=4096
matmul i8 m=8192,n=8192,k=8192 m=4096,n=4096,k=4096
attention bf16 b=2,q=2048,kv=2048,h=64,hkv=8,d=128 b=2,q=4096,kv=4096,h=64,hkv=8,d=128 b=1,q=16384,kv=16384,h=64,hkv=8,d=128 b=1,q=16,kv=8192,h=64,hkv=8,d=128
matmul bf16 m=1,n=4096,k=14336 m=4,n=4096,k=4096 m=1,n=8192,k=28672 m=16,n=57344,k=8192
gated_matmul bf16 m=4096,n=14336,k=4096 m=1,n=14336,k=4096
grouped_matmul bf16 e=64,tokens=4096,top_k=8,n=2048,k=2048 e=64,tokens=16,top_k=8,n=2048,k=2048
matmul q4_0 m=1,n=28672,k=4096 m=16,n=28672,k=4096
matmul q8_0 m=1,n=28672,k=4096 m=16,n=28672,k=4096
matmul mxfp4 m=1,n=28672,k=4096 m=16,n=28672,k=4096
matmul f8e4m3 m=1,n=28672,k=4096 m=16,n=28672,k=4096
matmul i8 m=1,n=28672,k=4096 m=16,n=28672,k=4096
matmul f16 m=8192,n=8192,k=8192 m=4096,n=4096,k=4096
matmul f32 m=4096,n=4096,k=4096
attention bf16 b=1,q=4096,kv=4096,h=64,hkv=8,d=64 b=1,q=4096,kv=4096,h=32,hkv=8,d=256 b=128,q=1,kv=8192,h=64,hkv=8,d=128
layer_norm bf16 rows=8192,len=8192
add bf16 rows=8192,len=8192
cast bf16 rows=8192,len=8192
quantise bf16 rows=8192,len=8192
qk_norm_rope_append bf16 b=1,q=4096,kv=8192,h=32,hkv=8,d=128
kv_append bf16 b=1,q=4096,kv=8192,hkv=8,d=128
embed bf16 tokens=8192,vocab=128256,dim=4096
route f32 tokens=8192,e=128,top_k=8
combine bf16 tokens=4096,top_k=8,len=4096
argmax f32 rows=64,len=128256
sample f32 rows=64,len=128256,top_k=50
TEXT
}

# The vendor's row that runs an op on a type, if the table has one: a name that holds both and `library`.
vendor_of() { grep -F library "$out/logs/rows.txt" | grep "^${1}_${2}_" | head -1; }

# measured LIMIT BUDGET OP DTYPE VENDOR SHAPE..: measures one line's kernels, in turn with the vendor's.
measured() {
    local limit=$1 seconds=$2 op=$3 dtype=$4 vendor=$5 arguments=() shape
    shift 5
    for shape in "$@"; do arguments+=(--shape "$shape"); done
    limited "$limit" "$perjoule" run --device "$device" --op "$op" --dtype "$dtype" "${arguments[@]}" ${kernel:+--kernel "$kernel"} \
        ${vendor:+--versus "$vendor"} --budget "$seconds" -o "$records" --format md --quiet >"$log" 2>&1 </dev/null
}

part_kernels() {
    local stop=$((SECONDS + $1)) count=0 left=0 done=0 wrong=0 op dtype list rc log each most vendor shapes_of
    limited 60 "$perjoule" kernels --device "$device" --json 2>"$out/logs/rows.err" | sed -n 's/.*"kernel": "\(.*\)".*/\1/p' >"$out/logs/rows.txt"
    shape_list | awk -v keep="${shapes:-.}" '{line = ""; for (i = 3; i <= NF; i++) if ($1 " " $2 " " $i ~ keep) line = line " " $i; if (line != "") print $1, $2 line}' \
        >"$out/logs/shapes.txt"
    count=$(awk '{n += NF - 2} END{print n+0}' "$out/logs/shapes.txt") left=$count
    local before=0 index=0
    [ ! -f "$records" ] || before=$(wc -l <"$records")
    while read -r op dtype list; do
        read -r -a shapes_of <<<"$list"
        vendor=$(vendor_of "$op" "$dtype")
        # starting, checking, power at rest and energy come on top of a shape's samples, of the vendor's as well
        each=$(((stop - SECONDS) / left)) && each=$((each < 3 ? 3 : each > 12 ? 12 : each))
        each=$((each * ${#shapes_of[@]}))
        [ $((SECONDS + each)) -le $stop ] || break
        index=$((index + 1)) left=$((left - ${#shapes_of[@]})) log=$out/logs/kernels-$index-$op-$dtype.txt
        most=$((stop - SECONDS + 10)) && most=$((most < 2 * each + 20 ? most : 2 * each + 20))
        measured $most $(((each + 1) / 2)) "$op" "$dtype" "$vendor" "${shapes_of[@]}"
        rc=$?
        if [ $rc -eq 2 ] && [ -n "$vendor" ]; then
            echo "- $op $dtype, without $vendor: $(grep -E '^error' "$log" | head -1 | cut -c1-300)" >>"$section"
            vendor=''
            measured $most $(((each + 1) / 2)) "$op" "$dtype" '' "${shapes_of[@]}"
            rc=$?
        fi
        done=$((done + ${#shapes_of[@]}))
        if [ $rc -ne 0 ]; then
            wrong=$((wrong + 1))
            echo "- $op $dtype $list: $(ended $rc): $(grep -E '^error|wrong result' "$log" | head -1 | cut -c1-300)" >>"$section"
        fi
        say "$op $dtype $list${vendor:+ versus $vendor}: $([ $rc -eq 0 ] && echo ok || ended $rc)"
    done <"$out/logs/shapes.txt"
    [ ! -f "$records" ] || tail -n +$((before + 1)) "$records" >"$out/logs/kernels.jsonl"
    [ ! -s "$out/logs/kernels.jsonl" ] || limited 60 "$perjoule" report "$out/logs/kernels.jsonl" --format md --quiet 2>/dev/null | sed '/^# /d; s/^## /#### /' >>"$section"
    # one table of all comparisons: those of each run have columns of their own width
    { printf '\n' && cat "$out"/logs/kernels-*.txt 2>/dev/null | awk '/^## /{on = /^## Versus/; next} on && /^\|-/ {if (!ruled++) print "|---|---|---|---|---|---|"; next} on && /^\|/ {gsub(/ +/, " "); if (!seen[$0]++) print}'; } >>"$section"
    local words="$done of $count shapes measured, $wrong runs of them failed"
    [ $done -eq "$count" ] || words="$words; the rest was left out for time"
    if [ $wrong -gt 0 ] || [ $done -eq 0 ]; then verdict kernels FAILED "$words"; else verdict kernels ok "$words"; fi
}

part_tune() {
    local log=$out/logs/tune.txt rc model half=$(($1 / 2))
    model=${models%%,*} && model=${model%%:*}
    export PERJOULE_TUNING=$out/tuning.json
    limited "$half" "$perjoule" tune --device "$device" --vendor --budget $((half / 2 + 1)) --quiet >"$log" 2>&1
    rc=$?
    if [ $rc -eq 0 ]; then
        limited "$half" "$perjoule" tune --device "$device" --model "$model" --vendor --budget $((half / 2 + 1)) --quiet >>"$log" 2>&1
        rc=$?
    fi
    { echo '```' && cut -c1-240 "$log" && echo '```'; } >>"$section"
    [ -f "$PERJOULE_TUNING" ] || unset PERJOULE_TUNING
    if [ $rc -eq 0 ]; then
        verdict tune ok 'measured choices are in tuning.json'
    elif [ $rc -eq 124 ] && [ -f "$out/tuning.json" ] && ! grep -q '^WRONG' "$log"; then
        verdict tune ok 'what its time allowed is in tuning.json'
    else
        verdict tune FAILED "$(ended $rc): $(grep -E '^WRONG|^error' "$log" | head -1 | cut -c1-200)"
    fi
}

part_tokens() {
    local stop=$((SECONDS + $1)) model dtype rc log wrong=0 done=0 count each list
    IFS=, read -r -a list <<<"$models"
    count=${#list[@]}
    for model in "${list[@]}"; do
        each=$(((stop - SECONDS) / (count - done)))
        [ $each -ge 10 ] || break
        dtype='' && case $model in *:*) dtype=${model##*:} model=${model%:*} ;; esac
        log=$out/logs/tokens-$(basename "$model")${dtype:+-$dtype}.txt
        # loading, and drawing random weights, comes on top of what is measured
        limited $((stop - SECONDS)) "$perjoule" run --only tokens --device "$device" --model "$model" ${dtype:+--dtype "$dtype"} -p 512 -n 64 --budget $((each / 5 + 1)) -o "$records" --format md --quiet >"$log" 2>&1
        rc=$?
        done=$((done + 1))
        [ $rc -eq 0 ] || wrong=$((wrong + 1))
        { awk '/^## Tokens/{on=1; next} /^## /{on=0} on' "$log" && [ $rc -eq 0 ] || echo "- $model $dtype: $(ended $rc): $(tail -1 "$log" | cut -c1-300)"; } >>"$section"
        say "$model $dtype: $([ $rc -eq 0 ] && echo ok || ended $rc)"
    done
    local words="$done of $count models measured, $wrong of them failed"
    if [ $wrong -gt 0 ] || [ $done -lt "$count" ]; then verdict tokens FAILED "$words"; else verdict tokens ok "$words"; fi
}

# One kernel's cases under one tool.
sanitize() {
    local tool=${1%% *} kernel=${1#* } log rc errors
    log=$out/logs/sanitizer/$tool-$kernel.log
    # what the driver refuses is told by the program itself
    local quiet=() && [ "$tool" != memcheck ] || quiet=(--report-api-errors no)
    PERJOULE_CASES=$(case $tool in racecheck) echo "${cases:-2}" ;; *) echo "${cases:-4}" ;; esac) \
        limited "$2" compute-sanitizer --tool "$tool" "${quiet[@]}" --error-exitcode 86 --print-limit 20 \
        "$conformance" --color never --test-threads 1 "$device::$kernel::" >"$log" 2>&1
    rc=$?
    # the end of the part is no fault of the kernel
    [ $rc -ne 124 ] || [ "$2" -ge 120 ] || return
    errors=$(grep -cE '^=+ +(Invalid|Error:|Race|Warning: Race|Barrier error|Uninitialized|Program hit)' "$log")
    echo "$tool $kernel $rc $(counts "$log") $errors"
}

part_sanitizer() {
    local deadline rows=$out/logs/sanitizer.txt tool name
    command -v compute-sanitizer >/dev/null || PATH=$PATH:/usr/local/cuda/bin:${CUDA_PATH:-/usr/local/cuda}/compute-sanitizer
    if ! command -v compute-sanitizer >/dev/null; then verdict sanitizer skipped 'compute-sanitizer is not installed' && return; fi
    mkdir -p "$out/logs/sanitizer"
    # one kernel of each op, then another of each: time may end before all are reached
    listed | awk -F:: '$3 != "library" && $4 != "none" && !seen[$2]++ {op = $2; sub(/_(any|f32|tf32|f16|bf16|f8e4m3|i8|i32|q[0-9].*|mxfp4|mixed|library)_.*/, "", op); print ++turn[op], $2}' |
        sort -s -n -k1,1 | cut -d' ' -f2 >"$out/logs/kernels.txt"
    [ -s "$out/logs/kernels.txt" ] || { verdict sanitizer FAILED "no case for $device" && return; }
    : >"$rows"
    deadline=$((EPOCHSECONDS + $1))
    export deadline cases out device conformance
    export -f sanitize limited counts
    while read -r name; do for tool in ${tools//,/ }; do echo "$tool $name"; done; done <"$out/logs/kernels.txt" |
        xargs -P "$jobs" -I{} bash -c 'left=$((deadline - EPOCHSECONDS)); [ $left -le 8 ] || sanitize "{}" $((left < 120 ? left : 120))' >>"$rows"
    local kernels bad=0 words=''
    kernels=$(wc -l <"$out/logs/kernels.txt")
    printf '| tool | kernels | clean | with errors | cases run | did not end | refused | not reached |\n|---|---|---|---|---|---|---|---|\n' >>"$section"
    for tool in ${tools//,/ }; do
        local tried clean dirty ran late refused
        read -r tried clean dirty ran late refused < <(awk -v tool="$tool" '$1 == tool {
            n++; ran += $4 + $5
            if ($3 == 124 || $3 == 137) late++
            else if ($3 != 86 && $4 + $5 + $6 == 0) refused++
            else if ($3 == 86 || $5 > 0 || $7 > 0) dirty++
            else clean++
        } END{print n+0, clean+0, dirty+0, ran+0, late+0, refused+0}' "$rows")
        echo "| $tool | $kernels | $clean | $dirty | $ran | $late | $refused | $((kernels - tried)) |" >>"$section"
        words="$words$tool: $clean of $kernels kernels clean, $dirty with errors, $late late, $refused refused, $((kernels - tried)) not reached; "
        [ "$tried" -gt 0 ] || bad=1
        # a tool that the machine lets do nothing is no fault of the kernels
        [ "$refused" -gt 0 ] && [ "$refused" -eq "$tried" ] || [ $((dirty + late + refused)) -eq 0 ] || bad=1
        if [ "$refused" -gt 0 ]; then
            { printf '\n%s refused:\n\n```\n' "$tool" && grep -h '^=' "$out/logs/sanitizer/$tool-"*.log | sort | uniq -c | sort -rn | head -5 && echo '```'; } >>"$section"
        fi
    done
    if [ $bad -ne 0 ]; then
        printf '\n```\n' >>"$section"
        awk '$3 == 86 || $5 > 0 || $4 + $5 + $6 > 0 && $7 > 0 {print $1 "-" $2}' "$rows" | head -6 | while read -r name; do
            echo "$name" && grep -E '^=' "$out/logs/sanitizer/$name.log" | grep -v 'COMPUTE-SANITIZER' | head -12 | cut -c1-200
        done >>"$section"
        printf '```\n' >>"$section"
        verdict sanitizer FAILED "${words%; }"
    else
        verdict sanitizer ok "${words%; }"
    fi
}

# What the numbers were taken on.
machine() {
    local tool
    echo '```'
    uname -srm && grep -m1 PRETTY_NAME /etc/os-release
    echo "$(nproc) processors: $(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2)"
    "$perjoule" --version
    if command -v nvidia-smi >/dev/null; then
        limited 30 nvidia-smi --query-gpu=index,name,uuid,pci.bus_id,driver_version,memory.total,memory.used,power.limit,clocks.sm,clocks.max.sm,clocks.mem,temperature.gpu,ecc.mode.current,mig.mode.current,compute_mode --format=csv
    else
        echo 'nvidia-smi: not there'
    fi
    for tool in nvcc compute-sanitizer ncu nsys; do
        command -v "$tool" >/dev/null && echo "$tool: $(limited 20 "$tool" --version 2>/dev/null | grep -iE 'release|version' | head -1)"
    done
    echo '```'
    printf '\n```\n' && limited 60 "$perjoule" devices 2>&1 | cut -c1-300 && echo '```'
}

records=$out/records.jsonl

# Shares of the budget; what a part leaves is shared by those after it.
weight() { case $1 in conformance) echo 45 ;; tokens) echo 36 ;; kernels) echo 28 ;; sanitizer) echo 10 ;; models) echo 8 ;; *) echo 4 ;; esac; }

finish() {
    {
        echo "# $device on $(hostname), $(date -u '+%Y-%m-%d %H:%M UTC')"
        printf '\n| part | | time | |\n|---|---|---|---|\n' && cat "$verdicts"
        printf '\n%s s of %s s; parts: %s.\n' "$SECONDS" "$budget" "$parts"
        for file in "$sections"/*.md; do [ ! -s "$file" ] || { echo && cat "$file"; }; done
    } >"$out/summary.md"
}
trap finish EXIT
trap 'failed=1; echo interrupted >&2; exit 130' INT TERM

section=$sections/0-machine.md
printf '## Machine\n\n' >"$section"
machine >>"$section" 2>&1
number=0
for part in ${all_parts//,/ }; do
    case ,$parts, in *,"$part",*) ;; *) continue ;; esac
    number=$((number + 1)) began=$SECONDS section=$sections/$number-$part.md
    printf '## %s\n\n' "$part" >"$section"
    rest=0 later=0
    for other in ${all_parts//,/ }; do
        [ "$other" != "$part" ] || later=1
        case $later,$parts, in 1*,"$other",*) rest=$((rest + $(weight "$other"))) ;; esac
    done
    share=$(($(left) * $(weight "$part") / rest))
    if [ $share -lt 5 ]; then
        verdict "$part" FAILED 'no time was left for it'
        continue
    fi
    say "$part: at most $share s"
    "part_$part" "$share"
done
if command -v nvidia-smi >/dev/null; then
    printf '## Afterwards\n\n```\n%s\n```\n' "$(limited 30 nvidia-smi 2>&1)" >"$sections/9-after.md"
fi
finish
trap - EXIT
echo && sed -n '1,/^## Machine/p' "$out/summary.md" | sed '$d'
exit "$failed"
