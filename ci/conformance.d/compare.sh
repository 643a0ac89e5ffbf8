# Comparing results of one suite. Sourced by ci/conformance and by its test.
# A file of results has a line a case: the case, a tab, `ok`, `failed` or `skipped`.

# differences SUITE NATIVE OTHER ALLOWED: a line for each case that native passes
# and the other does not (a case that is skipped or missing there counts), unless
# ALLOWED names it (`suite case reason…` a line, # comments). False when it
# printed any, or when native passed none.
differences() {
    local found status=0
    found=$(awk -F '\t' -v suite="$1" '
        FILENAME == ARGV[1] {
            if ($0 !~ /^[ ]*(#|$)/ && split($0, word, " ") >= 3 && word[1] == suite) allowed[word[2]]
            next
        }
        FILENAME == ARGV[2] { if ($2 == "ok") { native[$1]; passed++ } next }
        { other[$1] = $2 }
        END {
            for (name in native) {
                got = (name in other) ? other[name] : "missing"
                if (got != "ok" && !(name in allowed)) { print name ": " got; found++ }
            }
            exit (found > 0 || passed == 0)
        }' "$4" "$2" "$3") || status=1
    [ -z "$found" ] || printf '%s\n' "$found" | LC_ALL=C sort
    return "$status"
}

# count RESULTS VERDICT: how many cases ended so.
count() {
    awk -F '\t' -v wanted="$2" '$2 == wanted { n++ } END { print n + 0 }' "$1"
}
