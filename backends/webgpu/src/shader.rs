//! From a WGSL source to a module's text: a prelude that declares what it binds, the headers, the source.
//!
//! WGSL has neither includes nor generics. What differs between variants of a kernel is therefore said by a prelude in front of it:
//! `const` lines for tiles, `alias` lines for types, and for every operand its binding with functions to get and set elements. The
//! sources stay plain WGSL, and read `x_get(i)` whatever the type of `x`.
//!
//! | declared for an operand `x` | |
//! |---|---|
//! | `fn x_get(i: u32) -> f32` | element `i` of the operand, widened; 0 where the op has no such operand |
//! | `fn x_quad(i: u32) -> vec4<f32>` | elements `i` to `i + 3`, of operands that are read; of one that is read in quads `i` is a multiple of 4 |
//! | `fn x_int(i: u32) -> i32` | the same of an integer type, unconverted (u32 by its bits) |
//! | `fn x_set(i: u32, value: f32)` | rounds to nearest even and stores; beside it nothing changes, whoever writes there |
//! | `fn x_set_int(i: u32, value: i32)` | the same of an integer type |
//! | `fn x_put_byte(at: u32, bits: u32)` | stores a byte, counted from the operand's first: of block formats, to no effect elsewhere |
//! | `fn x_quad(i: u32) -> vec4<f32>` | elements `4 i` to `4 i + 3`, widened; of operands that are touched by quads in one access |
//! | `fn x_quad_set(i: u32, value: vec4<f32>)` | stores them |
//! | `fn x_line(i: u32, step: u32, count: u32) -> vec4<f32>` | elements `i`, `i + step`, `i + 2 step`, `i + 3 step`; 0 for those from the `count`-th on, `count` at least 1 |
//! | `const x_present: bool` | whether the op has it |
//! | `x_words`, `x_at()` | an operand of words: the array, and the index of its first element there |
//!
//! An operand of runs has `x_get(i) -> vec4<f32>` and `x_set(i, value: vec4<f32>)` for elements `i` to `i + 3`, `i` a multiple of 4: a
//! source that leaves open whether values are `f32` or `vec4<f32>` serves both.

use crate::unroll::unrolled;
use perjoule_kernels::DType;
use std::fmt::Write;

/// Most operands that a kernel binds.
pub(crate) const MAX_BINDINGS: usize = 24;

/// How a kernel touches an operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Touch {
    /// By element, read.
    Get,
    /// By element, written, and read where the kernel wants to.
    Set,
    /// By four elements of a float type, read. The operand begins at a multiple of what four take.
    Quads,
    /// By four elements of a float type, written too, so that no word has to be changed in part. The operand begins at a multiple of what
    /// four take.
    QuadsMut,
    /// An array of this WGSL type, read. The operand begins at a multiple of 16 bytes.
    Words(&'static str),
    /// An array of this WGSL type, written too. The operand begins at a multiple of 16 bytes.
    WordsMut(&'static str),
    /// By runs of 4 elements, read. The operand begins at a multiple of what a run takes, that of a block format anywhere.
    Run,
    /// By runs of 4 elements, written. The operand begins at a multiple of what a run takes.
    RunMut,
    /// The op has no such operand.
    Absent,
    /// The op has no such operand, which would be one of runs.
    AbsentRun,
}

/// An operand as a kernel sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Binding {
    /// Its name in the source.
    pub(crate) name: &'static str,
    pub(crate) dtype: DType,
    pub(crate) touch: Touch,
}

impl Binding {
    /// An operand that is read by element.
    pub(crate) const fn get(name: &'static str, dtype: DType) -> Self {
        Binding { name, dtype, touch: Touch::Get }
    }

    /// An operand that is written by element.
    pub(crate) const fn set(name: &'static str, dtype: DType) -> Self {
        Binding { name, dtype, touch: Touch::Set }
    }

    /// An operand that is read by four elements: in one access where `whole` says that it lies so.
    pub(crate) const fn quads(name: &'static str, dtype: DType, whole: bool) -> Self {
        Binding { name, dtype, touch: if whole { Touch::Quads } else { Touch::Get } }
    }

    /// The same of an operand that is written.
    pub(crate) const fn quads_mut(name: &'static str, dtype: DType, whole: bool) -> Self {
        Binding { name, dtype, touch: if whole { Touch::QuadsMut } else { Touch::Set } }
    }

    /// An operand that is read as an array of a WGSL type.
    pub(crate) const fn words(name: &'static str, ty: &'static str) -> Self {
        Binding { name, dtype: DType::U32, touch: Touch::Words(ty) }
    }

    /// An operand that is written as an array of a WGSL type.
    pub(crate) const fn words_mut(name: &'static str, ty: &'static str) -> Self {
        Binding { name, dtype: DType::U32, touch: Touch::WordsMut(ty) }
    }

    /// An operand that is read by runs.
    pub(crate) const fn run(name: &'static str, dtype: DType) -> Self {
        Binding { name, dtype, touch: Touch::Run }
    }

    /// An operand that is written by runs.
    pub(crate) const fn run_mut(name: &'static str, dtype: DType) -> Self {
        Binding { name, dtype, touch: Touch::RunMut }
    }

    /// The same where the op has it; else nothing is bound.
    pub(crate) fn when(self, present: bool) -> Self {
        let touch = match self.touch {
            touch if present => touch,
            Touch::Run | Touch::RunMut => Touch::AbsentRun,
            _ => Touch::Absent,
        };
        Binding { touch, ..self }
    }

    pub(crate) fn is_bound(&self) -> bool {
        !matches!(self.touch, Touch::Absent | Touch::AbsentRun)
    }

    pub(crate) fn is_written(&self) -> bool {
        matches!(self.touch, Touch::Set | Touch::QuadsMut | Touch::WordsMut(_) | Touch::RunMut)
    }
}

/// Which variant of a source a kernel is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Variant {
    /// `enable` lines without the word, such as `f16`.
    pub(crate) enables: Vec<&'static str>,
    /// Constants with their WGSL values: `("TILE", "32u")`.
    pub(crate) consts: Vec<(&'static str, String)>,
    /// Aliases of types: `("Scalar", "f32")`.
    pub(crate) aliases: Vec<(&'static str, &'static str)>,
    /// Operands in the order of their bindings.
    pub(crate) bindings: Vec<Binding>,
}

impl Variant {
    /// One that binds these operands.
    pub(crate) fn of(bindings: Vec<Binding>) -> Self {
        Variant { bindings, ..Variant::default() }
    }

    /// The same with a constant of type `u32`.
    pub(crate) fn uint(mut self, name: &'static str, value: usize) -> Self {
        self.consts.push((name, format!("{value}u")));
        self
    }

    /// The same with a constant of type `bool`.
    pub(crate) fn flag(mut self, name: &'static str, value: bool) -> Self {
        self.consts.push((name, value.to_string()));
        self
    }

    /// The same with an alias of a type.
    pub(crate) fn alias(mut self, name: &'static str, ty: &'static str) -> Self {
        self.aliases.push((name, ty));
        self
    }

    /// The same with an extension of the language.
    pub(crate) fn enable(mut self, extension: &'static str) -> Self {
        self.enables.push(extension);
        self
    }

    /// Operands that are bound.
    pub(crate) fn bound(&self) -> impl Iterator<Item = &Binding> {
        self.bindings.iter().filter(|binding| binding.is_bound())
    }

    /// The whole module. `Params`, which the source declares, is bound behind the operands.
    pub(crate) fn text(&self, headers: &[&str], source: &str) -> String {
        let mut text = String::new();
        for extension in &self.enables {
            let _ = writeln!(text, "enable {extension};");
        }
        for (name, value) in &self.consts {
            let _ = writeln!(text, "const {name} = {value};");
        }
        for (name, ty) in &self.aliases {
            let _ = writeln!(text, "alias {name} = {ty};");
        }
        let mut index = 0;
        for binding in &self.bindings {
            declare(&mut text, binding, index);
            index += u32::from(binding.is_bound());
        }
        let quads = MAX_BINDINGS / 4;
        let _ = writeln!(text, "@group(0) @binding({index}) var<uniform> params: Params;");
        let _ = writeln!(
            text,
            "@group(0) @binding({}) var<uniform> offsets: array<vec4<u32>, {quads}>;",
            index + 1
        );
        for part in headers.iter().chain([&source]) {
            text.push_str(part);
        }
        unrolled(&text)
    }
}

/// The binding of an operand and its functions. Offsets are in bytes.
fn declare(text: &mut String, binding: &Binding, index: u32) {
    let name = binding.name;
    let present = binding.is_bound();
    let _ = writeln!(text, "const {name}_present = {present};");
    let at = format!("offsets[{}][{}]", index / 4, index % 4);
    let mut line = |line: String| {
        text.push_str(&line);
        text.push('\n');
    };
    match binding.touch {
        Touch::Absent => {
            line(format!("fn {name}_get(i: u32) -> f32 {{ return 0.0; }}"));
            line(format!("fn {name}_int(i: u32) -> i32 {{ return 0; }}"));
            line(format!("fn {name}_set(i: u32, value: f32) {{}}"));
            line(format!("fn {name}_set_int(i: u32, value: i32) {{}}"));
            line(format!("fn {name}_put_byte(at: u32, bits: u32) {{}}"));
            line(format!("fn {name}_quad(i: u32) -> vec4<f32> {{ return vec4<f32>(0.0); }}"));
            line(format!("fn {name}_quad_set(i: u32, value: vec4<f32>) {{}}"));
            line(format!(
                "fn {name}_line(i: u32, step: u32, count: u32) -> vec4<f32> {{ return vec4<f32>(0.0); }}"
            ));
        }
        Touch::AbsentRun => {
            line(format!("fn {name}_get(i: u32) -> vec4<f32> {{ return vec4<f32>(0.0); }}"));
            line(format!("fn {name}_set(i: u32, value: vec4<f32>) {{}}"));
        }
        Touch::Quads | Touch::QuadsMut => fours(text, binding, index, &at, ("quad", "quad_set", true)),
        Touch::Words(ty) | Touch::WordsMut(ty) => {
            let access = if binding.is_written() { "read_write" } else { "read" };
            line(format!("@group(0) @binding({index}) var<storage, {access}> {name}_words: array<{ty}>;"));
            line(format!("fn {name}_at() -> u32 {{ return {at} / {}u; }}", size_of(ty)));
        }
        Touch::Get => {
            line(format!("@group(0) @binding({index}) var<storage, read> {name}_words: array<u32>;"));
            line(format!("fn {name}_word(i: u32) -> u32 {{ return {name}_words[i]; }}"));
            getters(text, binding, &at, &format!("{name}_get"));
            quad_getter(text, name);
        }
        Touch::Run if binding.dtype.is_block() => {
            line(format!("@group(0) @binding({index}) var<storage, read> {name}_words: array<u32>;"));
            line(format!("fn {name}_word(i: u32) -> u32 {{ return {name}_words[i]; }}"));
            let each: Vec<String> = (0..4).map(|j| format!("{name}_one(i + {j}u)")).collect();
            line(format!("fn {name}_get(i: u32) -> vec4<f32> {{ return vec4<f32>({}); }}", each.join(", ")));
            getters(text, binding, &at, &format!("{name}_one"));
        }
        Touch::Run | Touch::RunMut => fours(text, binding, index, &at, ("get", "set", false)),
        Touch::Set => {
            // words that several invocations write parts of
            let shared = binding.dtype.is_block() || binding.dtype.block_bytes() < 4;
            let word = if shared { "atomic<u32>" } else { "u32" };
            line(format!(
                "@group(0) @binding({index}) var<storage, read_write> {name}_words: array<{word}>;"
            ));
            line(match shared {
                true => format!("fn {name}_word(i: u32) -> u32 {{ return atomicLoad(&{name}_words[i]); }}"),
                false => format!("fn {name}_word(i: u32) -> u32 {{ return {name}_words[i]; }}"),
            });
            getters(text, binding, &at, &format!("{name}_get"));
            quad_getter(text, name);
            setters(text, binding, &at);
            let _ = writeln!(
                text,
                "fn {name}_quad_set(i: u32, value: vec4<f32>) {{
    {name}_set(4u * i, value.x);
    {name}_set(4u * i + 1u, value.y);
    {name}_set(4u * i + 2u, value.z);
    {name}_set(4u * i + 3u, value.w);
}}"
            );
        }
    }
}

/// Bytes of a WGSL type of numbers of 32 or 16 bits.
fn size_of(ty: &str) -> u32 {
    let of = |scalar: &str| if scalar == "f16" { 2 } else { 4 };
    match ty.strip_prefix("vec").and_then(|rest| rest.strip_suffix('>')).and_then(|rest| rest.split_once('<'))
    {
        Some((count, scalar)) => count.parse().unwrap_or(4) * of(scalar),
        None => of(ty.strip_prefix("atomic<").and_then(|rest| rest.strip_suffix('>')).unwrap_or(ty)),
    }
}

/// The word that holds four elements of a type, and the functions of `common/element.wgsl` that widen and narrow one.
fn four(dtype: DType) -> (&'static str, &'static str, &'static str) {
    match dtype {
        DType::F32 => ("vec4<u32>", "bitcast<vec4<f32>>", "bitcast<vec4<u32>>"),
        DType::F16 => ("vec2<u32>", "f16x4_to_f32", "f32_to_f16x4"),
        DType::BF16 => ("vec2<u32>", "bf16x4_to_f32", "f32_to_bf16x4"),
        DType::F8E4M3 => ("u32", "e4m3x4_to_f32", "f32_to_e4m3x4"),
        DType::I8 => ("u32", "i8x4_to_f32", "f32_to_i8x4"),
        // rows refuse what f32 does not hold; block formats are written by their bytes
        _ => ("vec4<u32>", "vec4<f32>", "vec4<u32>"),
    }
}

/// The binding of an operand that is touched by four elements, and functions `get` and `set`, which are given an element's index or, `by_quad`,
/// that of the four.
fn fours(
    text: &mut String,
    binding: &Binding,
    index: u32,
    at: &str,
    (get, set, by_quad): (&str, &str, bool),
) {
    let name = binding.name;
    let access = if binding.is_written() { "read_write" } else { "read" };
    let (ty, widen, narrow) = four(binding.dtype);
    let i = if by_quad { "i" } else { "i / 4u" };
    let word = format!("{name}_words[{at} / {}u + {i}]", size_of(ty));
    let _ = writeln!(
        text,
        "@group(0) @binding({index}) var<storage, {access}> {name}_words: array<{ty}>;
fn {name}_{get}(i: u32) -> vec4<f32> {{ return {widen}({word}); }}"
    );
    if by_quad {
        let _ = writeln!(text, "fn {name}_get(i: u32) -> f32 {{ return {name}_{get}(i / 4u)[i % 4u]; }}");
        line_getter(text, name);
    }
    if binding.is_written() {
        let _ = writeln!(text, "fn {name}_{set}(i: u32, value: vec4<f32>) {{ {word} = {narrow}(value); }}");
    }
}

/// Four elements as single ones.
fn quad_getter(text: &mut String, name: &str) {
    let element = |i: u32| format!("{name}_get(4u * i + {i}u)");
    let list = [0, 1, 2, 3].map(element).join(", ");
    let _ = writeln!(text, "fn {name}_quad(i: u32) -> vec4<f32> {{ return vec4<f32>({list}); }}");
    line_getter(text, name);
}

/// Four elements that lie apart, of which some are there.
fn line_getter(text: &mut String, name: &str) {
    let _ = writeln!(
        text,
        "fn {name}_line(i: u32, step: u32, count: u32) -> vec4<f32> {{
    var value = vec4<f32>({name}_get(i), 0.0, 0.0, 0.0);
    if count > 1u {{
        value.y = {name}_get(i + step);
    }}
    if count > 2u {{
        value.z = {name}_get(i + 2u * step);
    }}
    if count > 3u {{
        value.w = {name}_get(i + 3u * step);
    }}
    return value;
}}"
    );
}

/// Functions that read elements, one as `f32` under the name `get_name`.
fn getters(text: &mut String, binding: &Binding, at: &str, get_name: &str) {
    let name = binding.name;
    let get = match binding.dtype {
        DType::F32 => format!("return bitcast<f32>({name}_word({at} / 4u + i));"),
        DType::I32 => format!("return f32(bitcast<i32>({name}_word({at} / 4u + i)));"),
        DType::U32 => format!("return f32({name}_word({at} / 4u + i));"),
        DType::F16 => format!("return f16_to_f32({name}_half({at} + 2u * i));"),
        DType::BF16 => format!("return bitcast<f32>({name}_half({at} + 2u * i) << 16u);"),
        DType::F8E4M3 => format!("return e4m3_to_f32({name}_byte({at} + i));"),
        DType::I8 => format!("return f32(sign_extend({name}_byte({at} + i)));"),
        DType::Q8_0 => block(32, 34, at, &format!(
            "return f16_to_f32({name}_half(b)) * f32(sign_extend({name}_byte(b + 2u + e)));"
        )),
        DType::Q4_0 => block(32, 18, at, &format!(
            "return f16_to_f32({name}_half(b)) * f32(q4_code({name}_byte(b + 2u + (e & 15u)), e));"
        )),
        DType::MxFp4 => block(32, 17, at, &format!(
            "return e8m0_to_f32({name}_byte(b)) * e2m1_to_f32(q4_nibble({name}_byte(b + 1u + (e & 15u)), e));"
        )),
        DType::Q4K => block(256, 144, at, &format!(
            "let g = e / 32u;
    let scale = q4k_scale(g, {name}_byte(b + 4u + (g & 3u)), {name}_byte(b + 8u + (g & 3u)), {name}_byte(b + 12u + (g & 3u)));
    let code = ({name}_byte(b + 16u + (g / 2u) * 32u + (e & 31u)) >> ((g & 1u) * 4u)) & 15u;
    return f16_to_f32({name}_half(b)) * f32(scale.x) * f32(code) - f16_to_f32({name}_half(b + 2u)) * f32(scale.y);"
        )),
        DType::Q6K => block(256, 210, at, &format!(
            "let half = e / 128u;
    let part = (e & 127u) / 32u;
    let low = ({name}_byte(b + half * 64u + (part & 1u) * 32u + (e & 31u)) >> ((part / 2u) * 4u)) & 15u;
    let high = ({name}_byte(b + 128u + half * 32u + (e & 31u)) >> (part * 2u)) & 3u;
    let scale = sign_extend({name}_byte(b + 192u + e / 16u));
    return f16_to_f32({name}_half(b + 208u)) * f32(scale) * f32(i32(low | (high << 4u)) - 32);"
        )),
    };
    let int = match binding.dtype {
        DType::I32 | DType::U32 => format!("return bitcast<i32>({name}_word({at} / 4u + i));"),
        DType::I8 => format!("return sign_extend({name}_byte({at} + i));"),
        _ => format!("return i32({get_name}(i));"),
    };
    let _ = writeln!(
        text,
        "fn {name}_byte(at: u32) -> u32 {{ return ({name}_word(at >> 2u) >> ((at & 3u) * 8u)) & 255u; }}
fn {name}_half(at: u32) -> u32 {{
    let low = {name}_word(at >> 2u) >> ((at & 3u) * 8u);
    // blocks of an odd number of bytes begin anywhere
    if (at & 3u) == 3u {{
        return (low & 255u) | (({name}_word((at >> 2u) + 1u) & 255u) << 8u);
    }}
    return low & 65535u;
}}
fn {get_name}(i: u32) -> f32 {{
    {get}
}}
fn {name}_int(i: u32) -> i32 {{ {int} }}"
    );
}

/// The body of a getter of a block format: `b` is where the element's block begins, `e` its place there.
fn block(len: u32, bytes: u32, at: &str, body: &str) -> String {
    format!("let e = i % {len}u;\n    let b = {at} + (i / {len}u) * {bytes}u;\n    {body}")
}

/// Functions that write elements.
fn setters(text: &mut String, binding: &Binding, at: &str) {
    let name = binding.name;
    let (set, set_int) = match binding.dtype {
        DType::F32 => (format!("{name}_words[{at} / 4u + i] = bitcast<u32>(value);"), String::new()),
        DType::I32 => (
            format!("{name}_words[{at} / 4u + i] = bitcast<u32>(f32_to_i32(value));"),
            format!("{name}_words[{at} / 4u + i] = bitcast<u32>(value);"),
        ),
        DType::U32 => (
            format!("{name}_words[{at} / 4u + i] = f32_to_u32(value);"),
            format!("{name}_words[{at} / 4u + i] = bitcast<u32>(value);"),
        ),
        DType::F16 => (format!("{name}_put({at} + 2u * i, 65535u, f32_to_f16(value));"), String::new()),
        DType::BF16 => (format!("{name}_put({at} + 2u * i, 65535u, f32_to_bf16(value));"), String::new()),
        DType::F8E4M3 => (format!("{name}_put({at} + i, 255u, f32_to_e4m3(value));"), String::new()),
        DType::I8 => (
            format!("{name}_put({at} + i, 255u, bitcast<u32>(f32_to_i8(value)) & 255u);"),
            format!("{name}_put({at} + i, 255u, bitcast<u32>(value) & 255u);"),
        ),
        // by their bytes
        DType::Q8_0 | DType::Q4_0 | DType::Q4K | DType::Q6K | DType::MxFp4 => (String::new(), String::new()),
    };
    if binding.dtype.is_block() || binding.dtype.block_bytes() < 4 {
        let _ = writeln!(
            text,
            "fn {name}_put(at: u32, mask: u32, bits: u32) {{
    let shift = (at & 3u) * 8u;
    loop {{
        let old = atomicLoad(&{name}_words[at >> 2u]);
        let changed = (old & ~(mask << shift)) | (bits << shift);
        if atomicCompareExchangeWeak(&{name}_words[at >> 2u], old, changed).exchanged {{
            break;
        }}
    }}
}}
fn {name}_put_byte(at: u32, bits: u32) {{ {name}_put({at} + at, 255u, bits); }}"
        );
    } else {
        let _ = writeln!(text, "fn {name}_put_byte(at: u32, bits: u32) {{}}");
    }
    let _ = writeln!(
        text,
        "fn {name}_set(i: u32, value: f32) {{ {set} }}
fn {name}_set_int(i: u32, value: i32) {{ {set_int} }}"
    );
}
