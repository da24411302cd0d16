// Rewrites preprocessed CUDA C++ into C++ that g++ compiles against simt.h:
//
// - `__shared__ T x[N];` becomes a reference into the block's static shared memory, `extern __shared__ T x[];` a pointer to the dynamic
// one;
// - `asm("op.mods d, a, b;" : outs : ins)` becomes calls of the functions of ptx.h, which an instruction is named after;
// - for every `__global__` function that is no template, an entry is appended through which the driver finds it and calls it.
#pragma once
#include <cctype>
#include <cstdlib>
#include <map>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace perjoule::translate {

using std::string;
using std::vector;

inline bool word(char c) { return isalnum(static_cast<unsigned char>(c)) || c == '_'; }

inline string trimmed(const string& s) {
    size_t a = 0, b = s.size();
    while (a < b && isspace(static_cast<unsigned char>(s[a]))) a++;
    while (b > a && isspace(static_cast<unsigned char>(s[b - 1]))) b--;
    return s.substr(a, b - a);
}

inline bool starts(const string& s, const char* with) { return s.rfind(with, 0) == 0; }

// The end of a string or character literal that begins at `i`.
inline size_t literal_end(const string& s, size_t i) {
    const char quote = s[i++];
    while (i < s.size() && s[i] != quote) i += s[i] == '\\' ? 2 : 1;
    return i + 1;
}

// The index behind the bracket that closes the one at `i`.
inline size_t closed(const string& s, size_t i) {
    int depth = 0;
    for (; i < s.size(); i++) {
        const char c = s[i];
        if (c == '"' || c == '\'') {
            i = literal_end(s, i) - 1;
        } else if (c == '(' || c == '[' || c == '{') {
            depth++;
        } else if (c == ')' || c == ']' || c == '}') {
            if (--depth == 0) return i + 1;
        }
    }
    throw std::runtime_error("a bracket is not closed");
}

// Parts between separators that stand outside brackets and literals.
inline vector<string> split(const string& s, char separator) {
    vector<string> parts;
    size_t from = 0;
    for (size_t i = 0; i < s.size(); i++) {
        const char c = s[i];
        if (c == '"' || c == '\'')
            i = literal_end(s, i) - 1;
        else if (c == '(' || c == '[' || c == '{')
            i = closed(s, i) - 1;
        else if (c == separator) {
            parts.push_back(s.substr(from, i - from));
            from = i + 1;
        }
    }
    parts.push_back(s.substr(from));
    return parts;
}

// ---- PTX ----

// One `asm` statement.
class Asm {
  public:
    explicit Asm(const string& inside) { parse(inside); }

    string translated() {
        std::ostringstream out;
        out << "{ ";
        set_labels();
        if (!labels.empty()) {
            out << "__label__ ";
            bool first = true;
            for (const string& label : labels) {
                out << (first ? "" : ", ") << label;
                first = false;
            }
            out << "; ";
        }
        for (size_t i = 0; i < operands.size(); i++) {
            const Operand& o = operands[i];
            if (o.output) {
                out << "auto&& pj_o" << i << " = (" << o.expression << "); pj::Reg pj_" << i
                    << (o.reads ? " = pj::get(pj_o" + std::to_string(i) + "); " : "{}; ");
            } else {
                out << "const pj::Reg pj_" << i << " = pj::get(" << o.expression << "); ";
            }
        }
        body(out);
        for (size_t i = 0; i < operands.size(); i++)
            if (operands[i].output) out << "pj::put(pj_o" << i << ", pj_" << i << "); ";
        out << "}";
        return out.str();
    }

  private:
    struct Operand {
        string expression;
        bool output, reads;
    };
    string text;
    vector<Operand> operands;
    std::map<string, size_t> named;
    std::set<string> labels;

    static string unescaped(const string& s) {
        string out;
        for (size_t i = 0; i < s.size(); i++) {
            if (s[i] != '\\') {
                out += s[i];
            } else if (++i < s.size()) {
                out += s[i] == 'n' ? '\n' : s[i] == 't' ? '\t' : s[i];
            }
        }
        return out;
    }

    static string literals(const string& s, size_t& i) {
        string out;
        for (;;) {
            while (i < s.size() && isspace(static_cast<unsigned char>(s[i]))) i++;
            if (i < s.size() && s[i] == 'R' && i + 1 < s.size() && s[i + 1] == '"') {
                const size_t open = s.find('(', i);
                const string end = ")" + s.substr(i + 2, open - i - 2) + "\"";
                const size_t close = s.find(end, open);
                out += s.substr(open + 1, close - open - 1);
                i = close + end.size();
                continue;
            }
            if (i >= s.size() || s[i] != '"') return out;
            const size_t end = literal_end(s, i);
            out += unescaped(s.substr(i + 1, end - i - 2));
            i = end;
        }
    }

    void parse(const string& inside) {
        // `::` of scopes stands within the operands' parentheses, but an empty list of outputs is written `::` as well
        const vector<string> parts = split(inside, ':');
        size_t i = 0;
        text = literals(parts[0], i);
        for (size_t list = 1; list < parts.size() && list < 3; list++) {
            for (const string& one : split(parts[list], ',')) {
                string s = trimmed(one);
                if (s.empty()) continue;
                if (s[0] == '[') {
                    const size_t end = closed(s, 0);
                    named[trimmed(s.substr(1, end - 2))] = operands.size();
                    s = trimmed(s.substr(end));
                }
                size_t at = 0;
                const string constraint = literals(s, at);
                operands.push_back({trimmed(s.substr(at)), list == 1, constraint.find('+') != string::npos});
            }
        }
        strip_comments();
    }

    void strip_comments() {
        string out;
        for (size_t i = 0; i < text.size(); i++) {
            if (text.compare(i, 2, "//") == 0) {
                while (i < text.size() && text[i] != '\n') i++;
                out += '\n';
            } else if (text.compare(i, 2, "/*") == 0) {
                i = text.find("*/", i) + 1;
            } else {
                out += text[i];
            }
        }
        text = out;
    }

    void set_labels() {
        for (size_t i = 0; i < text.size(); i++) {
            if (text[i] != ':' || (i + 1 < text.size() && text[i + 1] == ':') || (i > 0 && text[i - 1] == ':')) continue;
            size_t from = i;
            while (from > 0 && (word(text[from - 1]) || text[from - 1] == '$')) from--;
            labels.insert(name(text.substr(from, i - from)));
        }
    }

    static string name(string s) {
        for (char& c : s)
            if (!word(c)) c = '_';
        return "pj_" + s;
    }

    void body(std::ostringstream& out) {
        size_t i = 0;
        while (i < text.size()) {
            const char c = text[i];
            if (isspace(static_cast<unsigned char>(c)) || c == ';') {
                i++;
            } else if (c == '{' || c == '}') {
                out << c << ' ';
                i++;
            } else {
                // a label, or an instruction up to `;`
                size_t end = i;
                while (end < text.size() && (word(text[end]) || text[end] == '$')) end++;
                size_t after = end;
                while (after < text.size() && isspace(static_cast<unsigned char>(text[after]))) after++;
                if (end > i && after < text.size() && text[after] == ':' && text.compare(after, 2, "::") != 0) {
                    out << name(text.substr(i, end - i)) << ":; ";
                    i = after + 1;
                    continue;
                }
                end = i;
                while (end < text.size() && text[end] != ';') end = text[end] == '{' || text[end] == '[' ? closed(text, end) : end + 1;
                instruction(trimmed(text.substr(i, end - i)), out);
                i = end + 1;
            }
        }
    }

    void instruction(string s, std::ostringstream& out) {
        if (starts(s, ".reg")) return declare(s, out);
        if (starts(s, ".pragma")) return;
        if (s[0] == '@') {
            const bool inverted = s[1] == '!';
            size_t i = inverted ? 2 : 1, from = i;
            while (i < s.size() && !isspace(static_cast<unsigned char>(s[i]))) i++;
            out << "if (" << (inverted ? "!" : "") << "pj::truth(" << operand(s.substr(from, i - from)) << ")) ";
            s = trimmed(s.substr(i));
        }
        size_t i = 0;
        while (i < s.size() && !isspace(static_cast<unsigned char>(s[i]))) i++;
        const string op = s.substr(0, i);
        vector<string> arguments;
        const string rest = trimmed(s.substr(i));
        if (!rest.empty())
            for (const string& one : split(rest, ',')) {
                // `p|q`: two destinations
                for (const string& each : split(trimmed(one), '|')) arguments.push_back(trimmed(each));
            }
        if (starts(op, "bra")) {
            out << "goto " << name(arguments.at(0)) << "; ";
            return;
        }
        out << call(op, arguments) << "; ";
    }

    static void declare(const string& s, std::ostringstream& out) {
        size_t i = 4;
        while (i < s.size() && (isspace(static_cast<unsigned char>(s[i])) || s[i] == '.')) {
            while (i < s.size() && !(isspace(static_cast<unsigned char>(s[i])) && s[i + 1] != '.')) i++;
            while (i < s.size() && isspace(static_cast<unsigned char>(s[i]))) i++;
        }
        for (const string& one : split(s.substr(i), ',')) {
            string r = trimmed(one);
            const size_t angle = r.find('<');
            if (angle == string::npos) {
                out << "pj::Reg " << name(r) << "; ";
                continue;
            }
            const int count = atoi(r.c_str() + angle + 1);
            for (int n = 0; n < count; n++) out << "pj::Reg " << name(r.substr(0, angle) + std::to_string(n)) << "; ";
        }
    }

    string operand(string s) {
        s = trimmed(s);
        if (s.empty()) throw std::runtime_error("an operand is missing in: " + text);
        if (s[0] == '!') return "pj::inverted(" + operand(s.substr(1)) + ")";
        if (s == "_") return "pj::sink()";
        if (s[0] == '{') {
            const vector<string> parts = split(s.substr(1, s.size() - 2), ',');
            string out = "pj::Vec<" + std::to_string(parts.size()) + ">{{";
            for (size_t i = 0; i < parts.size(); i++) out += (i ? ", " : "") + string("pj::pointer(") + operand(parts[i]) + ")";
            return out + "}}";
        }
        if (s[0] == '[') {
            // [base], [base + offset], or [map, {coordinates}]
            const vector<string> parts = split(s.substr(1, s.size() - 2), ',');
            string base = trimmed(parts[0]), offset = "0";
            const size_t plus = base.find_first_of("+-", 1);
            if (plus != string::npos) {
                offset = trimmed(base.substr(plus + 1));
                if (offset[0] == '%') offset = "pj::immediate(" + operand(offset) + ")";
                if (base[plus] == '-') offset = "-" + offset;
                base = trimmed(base.substr(0, plus));
            }
            string out = "pj::at(" + operand(base) + ", " + offset + ")";
            for (size_t i = 1; i < parts.size(); i++) out += ", " + operand(parts[i]);
            return out;
        }
        if (s[0] == '%') {
            size_t i = s.find_first_not_of('%');
            s = s.substr(i);
            if (isdigit(static_cast<unsigned char>(s[0]))) return "pj_" + s;
            if (s[0] == '[') return "pj_" + std::to_string(named.at(s.substr(1, s.find(']') - 1)));
            for (char& c : s)
                if (!word(c)) c = '_';
            return "pj::special_" + s + "()";
        }
        if (isdigit(static_cast<unsigned char>(s[0])) || s[0] == '-') {
            if (starts(s, "0f") || starts(s, "0F")) return "pj::of(0x" + s.substr(2) + "ull)";
            if (starts(s, "0d") || starts(s, "0D")) return "pj::of(0x" + s.substr(2) + "ull)";
            const bool real = s.find('.') != string::npos;
            return real ? "pj::real(" + s + ")" : "pj::of(" + s + ")";
        }
        return name(s);
    }

    // What does not change the result here.
    static bool noise(const string& part) {
        static const std::set<string> words{"sync",
                                            "aligned",
                                            "ftz",
                                            "relaxed",
                                            "gpu",
                                            "cta",
                                            "cluster",
                                            "sys",
                                            "weak",
                                            "release",
                                            "nc",
                                            "global",
                                            "L1::no_allocate",
                                            "L1::evict_last",
                                            "L1::evict_first",
                                            "L1::evict_normal",
                                            "L1::evict_unchanged",
                                            "L2::64B",
                                            "L2::128B",
                                            "L2::256B",
                                            "ca",
                                            "cg",
                                            "cs",
                                            "lu",
                                            "cv",
                                            "wb",
                                            "wt",
                                            "noinc",
                                            "L2::evict_last",
                                            "L2::evict_first",
                                            "L2::evict_normal"};
        return words.count(part) != 0;
    }

    static bool is_type(const string& part) {
        static const std::set<string> words{"b8",     "b16",  "b32",  "b64",  "b128", "u8",     "u16",    "u32",  "u64",
                                            "s8",     "s16",  "s32",  "s64",  "f16",  "f32",    "f64",    "bf16", "f16x2",
                                            "bf16x2", "pred", "tf32", "e4m3", "e5m2", "e4m3x2", "e5m2x2", "f32x2"};
        return words.count(part) != 0;
    }

    string call(const string& op, const vector<string>& arguments) {
        vector<string> parts;
        {
            // split at `.`, keep `a::b` together
            string part;
            for (char c : op) {
                if (c == '.') {
                    parts.push_back(part);
                    part.clear();
                } else {
                    part += c;
                }
            }
            parts.push_back(part);
        }
        const string base = parts[0];
        string text_arguments;
        for (const string& a : arguments) text_arguments += (text_arguments.empty() ? "" : ", ") + operand(a);
        bool shared = false, acquire = false;
        string types, values;
        const bool memory = base == "ld" || base == "st" || base == "red" || base == "atom" || base == "ldu";
        // whole families keep all of their words, but for those that mean nothing here
        for (size_t i = 1; i < parts.size(); i++) {
            string p = parts[i] == "shared::cta" ? "shared" : parts[i];
            if (memory && starts(p, "shared"))
                shared = true;
            else if (p == "acquire" || p == "volatile" || p == "acq_rel")
                acquire = true;
            else if (p == "L2::cache_hint" || (noise(p) && !(p == "cluster" && base == "barrier")))
                continue;
            else if (is_type(p) && base != "mov")
                types += string(types.empty() ? "pj::" : ", pj::") + p;
            else if (base == "mov" && is_type(p))
                types = "pj::" + p;
            else if (base == "wgmma" && starts(p, "m64n")) {
                types = p.substr(4, p.find('k') - 4) + ", " + p.substr(p.find('k') + 1);
            } else {
                for (char& c : p)
                    if (!word(c)) c = '_';
                while (p.find("__") != string::npos) p.erase(p.find("__"), 1);
                values += "_" + p;
            }
        }
        string out;
        if (acquire && memory) out += "pj::waiting(), ";
        out += "pj::op_" + base + values;
        if (!types.empty()) out += "<" + types + ">";
        out += string("(") + (memory ? (shared ? "pj::Shared{}" : "pj::Global{}") : "") + (memory && !arguments.empty() ? ", " : "") +
               text_arguments + ")";
        return out;
    }
};

// ---- declarations ----

class Rewriter {
  public:
    // `own` tells files that are not to be rewritten.
    Rewriter(const string& text, const string& own) : in(text), own_folder(own) {}

    string rewritten() {
        bool ours = false;
        for (size_t i = 0; i < in.size();) {
            if (in[i] == '#' && (i == 0 || in[i - 1] == '\n')) {
                size_t end = in.find('\n', i);
                if (end == string::npos) end = in.size();
                const string line = in.substr(i, end - i);
                if (line.size() > 2 && isdigit(static_cast<unsigned char>(line[2]))) ours = line.find(own_folder) != string::npos;
                out += line;
                i = end;
            } else if (ours) {
                size_t end = in.find('\n', i);
                if (end == string::npos) end = in.size();
                out.append(in, i, end + 1 - i);
                i = end + 1;
                statement = out.size();
            } else {
                i = token(i);
            }
        }
        for (const string& kernel : kernels)
            out += "\nextern \"C\" __attribute__((visibility(\"default\"))) ::perjoule::Entry perjoule_entry_" + kernel +
                   "() { return ::perjoule::entry<&" + kernel + ">(); }";
        return out + "\n";
    }

    vector<string> kernels;

  private:
    const string& in;
    string own_folder, out;
    // Where the current statement begins in `out`.
    size_t statement = 0;
    // Whether each open brace is one of a namespace or of `extern "C"`.
    vector<bool> braces;
    // Dynamic shared arrays that are declared outside functions.
    std::map<string, string> dynamic;
    int number = 0;

    bool in_function() const {
        for (bool outer : braces)
            if (!outer) return true;
        return false;
    }

    string prefix() const {
        string s = out.substr(statement);
        // a line marker within the statement
        string kept;
        std::istringstream lines(s);
        for (string line; std::getline(lines, line);)
            if (line.empty() || line[0] != '#') kept += line + " ";
        return trimmed(kept);
    }

    size_t token(size_t i) {
        const char c = in[i];
        if (c == 'R' && in.compare(i, 2, "R\"") == 0 && (i == 0 || !word(in[i - 1]))) {
            const size_t open = in.find('(', i);
            const string end = ")" + in.substr(i + 2, open - i - 2) + "\"";
            const size_t close = in.find(end, open) + end.size();
            out.append(in, i, close - i);
            return close;
        }
        if (c == '"' || c == '\'') {
            // digits may be grouped by quotes
            if (c == '\'' && i > 0 && word(in[i - 1])) {
                out += c;
                return i + 1;
            }
            const size_t end = literal_end(in, i);
            out.append(in, i, end - i);
            return end;
        }
        if (word(c) && !isdigit(static_cast<unsigned char>(c))) {
            size_t end = i;
            while (end < in.size() && word(in[end])) end++;
            return identifier(in.substr(i, end - i), end);
        }
        if (isdigit(static_cast<unsigned char>(c))) {
            size_t end = i;
            while (end < in.size() && (word(in[end]) || in[end] == '.')) end++;
            out.append(in, i, end - i);
            return end;
        }
        out += c;
        if (c == '{') {
            const string before = prefix();
            braces.push_back(starts(before, "namespace") || starts(before, "inline namespace") || before == "extern \"C\" {");
            statement = out.size();
        } else if (c == '}') {
            if (!braces.empty()) braces.pop_back();
            statement = out.size();
        } else if (c == ';') {
            statement = out.size();
        }
        return i + 1;
    }

    size_t identifier(const string& w, size_t end) {
        if (w == "asm" || w == "__asm__" || w == "__asm") {
            size_t open = in.find('(', end);
            const size_t close = closed(in, open);
            string inside = in.substr(open + 1, close - open - 2);
            for (size_t at = inside.find("\n#"); at != string::npos; at = inside.find("\n#", at))
                inside.erase(at, inside.find('\n', at + 1) - at);
            out += Asm(inside).translated();
            size_t i = close;
            while (i < in.size() && isspace(static_cast<unsigned char>(in[i]))) i++;
            statement = out.size();
            return i + 1;  // `;`
        }
        if (w == "__shared__") return shared(end);
        if (w == "__global__") {
            const string before = prefix();
            if (!starts(before, "template")) {
                size_t i = end;
                for (;;) {
                    const size_t open = in.find('(', i);
                    size_t last = open;
                    while (isspace(static_cast<unsigned char>(in[last - 1]))) last--;
                    size_t first = last;
                    while (word(in[first - 1])) first--;
                    const string name = in.substr(first, last - first);
                    if (name == "__attribute__") {
                        i = closed(in, open);
                        continue;
                    }
                    bool known = false;
                    for (const string& k : kernels) known |= k == name;
                    if (!known) kernels.push_back(name);
                    break;
                }
            }
            return end;
        }
        const auto found = dynamic.find(w);
        if (found != dynamic.end()) {
            out += "(static_cast<" + found->second + "*>(::perjoule::Dynamic{}))";
            return end;
        }
        out += w;
        return end;
    }

    // Removes alignment: dynamic memory has enough.
    static string without_attributes(string s) {
        for (const char* attribute : {"__attribute__", "alignas", "static", "extern", "inline"}) {
            for (size_t at = s.find(attribute); at != string::npos; at = s.find(attribute, at)) {
                size_t to = at + string(attribute).size();
                if ((at > 0 && word(s[at - 1])) || (to < s.size() && word(s[to]))) {
                    at = to;
                    continue;
                }
                size_t next = to;
                while (next < s.size() && isspace(static_cast<unsigned char>(s[next]))) next++;
                if (next < s.size() && s[next] == '(') to = closed(s, next);
                s.erase(at, to - at);
            }
        }
        return trimmed(s);
    }

    size_t shared(size_t from) {
        const string before = prefix();
        size_t end = from;
        while (in[end] != ';') end = in[end] == '(' || in[end] == '[' || in[end] == '{' ? closed(in, end) : end + 1;
        string declaration = trimmed(in.substr(from, end - from));
        const bool external = before.find("extern") != string::npos;
        if (external) {
            const string plain = without_attributes(before + " " + declaration);
            const size_t bracket = plain.find('[');
            string head = trimmed(plain.substr(0, bracket));
            size_t first = head.size();
            while (first > 0 && word(head[first - 1])) first--;
            const string name = head.substr(first), type = trimmed(head.substr(0, first));
            out.resize(statement);
            if (in_function())
                out += type + " *const " + name + " = ::perjoule::Dynamic{};";
            else
                dynamic[name] = type;
        } else {
            string specifiers = before;
            for (size_t at = specifiers.find("static"); at != string::npos; at = specifiers.find("static")) specifiers.erase(at, 6);
            declaration = trimmed(specifiers) + " " + declaration;
            const string n = std::to_string(++number);
            out.resize(statement);
            out += " struct pj_shared_" + n + " { " + declaration + "; }; static ::perjoule::Site pj_site_" + n + "{0};";
            for (const string& name : declared(declaration))
                out += " auto& " + name + " = ::perjoule::shared<pj_shared_" + n + ">(pj_site_" + n + ")." + name + ";";
        }
        statement = out.size();
        return end + 1;
    }

    // The names that a declaration declares.
    static vector<string> declared(const string& s) {
        vector<string> names;
        string last;
        int angles = 0;
        bool sized = false;
        for (size_t i = 0; i < s.size();) {
            const char c = s[i];
            if (word(c)) {
                size_t end = i;
                while (end < s.size() && word(s[end])) end++;
                const string w = s.substr(i, end - i);
                if (w == "__attribute__" || w == "alignas" || w == "decltype") {
                    end = s.find('(', end);
                    end = closed(s, end);
                } else if (angles == 0 && !sized) {
                    last = w;
                }
                i = end;
            } else if (c == '[') {
                i = closed(s, i);
                sized = true;
            } else if (c == '(' || c == '{') {
                i = closed(s, i);
            } else {
                if (c == '<')
                    angles++;
                else if (c == '>')
                    angles--;
                else if (c == ',' && angles == 0) {
                    names.push_back(last);
                    sized = false;
                }
                i++;
            }
        }
        names.push_back(last);
        return names;
    }
};

}  // namespace perjoule::translate
