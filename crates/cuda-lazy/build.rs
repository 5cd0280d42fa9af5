//! candle-core asks the linker for `-lcuda -lcublas …`. It is answered with empty archives, and the
//! functions they would have held are defined as jumps through a table that `src/lib.rs` fills on
//! first use.

use std::fmt::Write;
use std::path::PathBuf;
use std::{env, fs};

fn main() {
    println!("cargo:rerun-if-changed=symbols.txt");
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets OUT_DIR"));
    let list = fs::read_to_string("symbols.txt").expect("symbols.txt lies beside build.rs");
    let lines =
        list.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));

    let (mut libraries, mut count) = (0_usize, 0_usize);
    let (mut names, mut jumps) = (String::new(), String::new());
    for line in lines {
        if let Some(library) = line.strip_prefix("lib ") {
            let archive = out.join(format!("lib{library}.a"));
            fs::write(archive, "!<arch>\n").expect("OUT_DIR can be written to");
            libraries += 1;
            continue;
        }
        let library = libraries.checked_sub(1).expect("symbols.txt names a library first");
        let text = "writing to a String cannot fail";
        writeln!(names, "({library}, \"{line}\"),").expect(text);
        // An empty place in the table sends the first call through the look-up, with its number.
        writeln!(
            jumps,
            ".section .text.cuda_lazy.{line},\"ax\",@progbits\n\
             .globl {line}\n\
             .type {line},@function\n\
             {line}:\n\
             \tmovq cuda_lazy_table+{place}(%rip), %r11\n\
             \ttestq %r11, %r11\n\
             \tjz 1f\n\
             \tjmpq *%r11\n\
             1:\tpushq ${count}\n\
             \tjmp cuda_lazy_resolve\n\
             .size {line}, .-{line}",
            place = 8 * count
        )
        .expect(text);
        count += 1;
    }
    let table = format!(
        "const COUNT: usize = {count};\nstatic NAMES: [(usize, &str); COUNT] = [{names}];\n"
    );
    fs::write(out.join("jumps.s"), jumps).expect("OUT_DIR can be written to");
    fs::write(out.join("names.rs"), table).expect("OUT_DIR can be written to");
    println!("cargo:rustc-link-search=native={}", out.display());
}
