//! Finds the kernels of a source file and writes the C++ that puts them into a table.
use std::fs;
use std::path::{Path, PathBuf};

use crate::Compiler;

/// All of include/, and what candle's sources include besides.
const HEADERS: &str = "#include <stdint.h>\n#include <cuda_emu.h>\n#include <cuda.h>\n\
#include <cuda_bf16.h>\n#include <cuda_fp16.h>\n#include <cuda_fp8.h>\n\
#include <cuda_runtime.h>\n#include <cuda/std/limits>\n";

/// A generated file that includes a source of kernels, and the namespace it puts them into.
pub struct Wrapper {
    pub file: PathBuf,
    module: String,
}

struct Kernel {
    name: String,
    launch_bounds: String,
}

/// Many kernels come out of macros, so names are looked for in what the preprocessor leaves.
///
/// The source goes into a namespace of its own, as it is a module of its own on the device: two
/// files may use one name for different functions. Hence the standard headers come before it.
pub fn wrap(compiler: &Compiler, source: &Path, is_candles: bool, out: &Path) -> Wrapper {
    let stem = source.file_stem().expect("a source has a name").to_string_lossy().into_owned();
    let module = if is_candles { format!("candle_{stem}") } else { format!("bantam_{stem}") };
    let file = out.join(format!("kernels_{module}.cpp"));
    let mut head = String::from(HEADERS);
    if is_candles {
        // candle leaves out what an architecture lacks; this is the emulated device's.
        head += "#define __CUDA_ARCH__ 900\n";
    }
    let include = format!("#include \"{}\"\n", source.display());
    write(&file, &format!("{head}{include}"));
    let text = compiler.preprocess(&file);

    let mut body = String::new();
    for declaration in dynamic_shared(&text) {
        body += &format!("extern thread_local {declaration} __asm__(\"emu_shared\");\n");
    }
    body += &include;
    body += "extern const emu::Entry table[];\nconst emu::Entry table[] = {\n";
    for Kernel { name, launch_bounds } in kernels(&text) {
        let threads = format!("emu::max_threads({launch_bounds})");
        body += &format!("  emu::entry<{name}>(\"{name}\", {threads}),\n");
    }
    body += "  {}};\n";
    write(&file, &format!("{head}namespace {module} {{\n{body}}}\n"));
    Wrapper { file, module }
}

/// The file that joins the tables into one.
pub fn table(wrappers: &[Wrapper], out: &Path) -> PathBuf {
    let mut text = String::from("#include <vector>\n#include \"cuda_emu.h\"\n");
    for Wrapper { module, .. } in wrappers {
        text += &format!("namespace {module} {{ extern const emu::Entry table[]; }}\n");
    }
    text.push_str("static std::vector<emu::Entry> join() {\n  std::vector<emu::Entry> all;\n");
    for Wrapper { module, .. } in wrappers {
        text += &format!("  for (auto e = {module}::table; e->name; e++) all.push_back(*e);\n");
    }
    text.push_str("  all.push_back({});\n  return all;\n}\n");
    text.push_str("const emu::Entry* emu_table() {\n");
    text.push_str(
        "  static const std::vector<emu::Entry> all = join();\n  return all.data();\n}\n",
    );
    let file = out.join("table.cpp");
    write(&file, &text);
    file
}

fn write(file: &Path, text: &str) {
    fs::write(file, text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
}

/// The `extern "C" __global__ void [__launch_bounds__(…)] name(` of a preprocessed source.
fn kernels(text: &str) -> Vec<Kernel> {
    let words = |s: &str| s.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut found = Vec::new();
    for (at, _) in text.match_indices("__global__") {
        if !words(&text[at.saturating_sub(40)..at]).ends_with("extern \"C\"") {
            continue;
        }
        let mut rest = text[at + "__global__".len()..].trim_start();
        let mut launch_bounds = String::new();
        loop {
            let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
            let (word, after) = (&rest[..end], rest[end..].trim_start());
            rest = after;
            match word {
                "void" => {}
                "__launch_bounds__" => {
                    let (inside, after) = parenthesised(rest);
                    launch_bounds = inside.to_string();
                    rest = after.trim_start();
                }
                name if !name.is_empty() && rest.starts_with('(') => {
                    found.push(Kernel { name: name.to_string(), launch_bounds });
                    break;
                }
                other => panic!(
                    "a kernel is declared `extern \"C\" __global__ void name(…)`, not {other:?}"
                ),
            }
        }
    }
    found
}

/// The `type name[]` of every `extern __shared__ type name[];`, each once.
fn dynamic_shared(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("__shared__") {
        if !text[..at].trim_end().ends_with("extern") {
            continue;
        }
        let rest = &text[at + "__shared__".len()..];
        let mut declaration = rest[..rest.find(';').unwrap_or(rest.len())].trim();
        if let Some(attribute) = declaration.strip_prefix("__attribute__") {
            declaration = parenthesised(attribute.trim_start()).1.trim();
        }
        if !found.iter().any(|f| f == declaration) {
            found.push(declaration.to_string());
        }
    }
    found
}

/// Splits "(a(b)c) d" into "a(b)c" and " d".
fn parenthesised(text: &str) -> (&str, &str) {
    let mut depth = 0;
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' if depth == 1 => return (&text[1..i], &text[i + 1..]),
            ')' => depth -= 1,
            _ => {}
        }
    }
    panic!("no closing parenthesis in {text:.60?}")
}
