//! A program that ends, for schedules and one-off runs: no service, a command.
//!
//! Prints its arguments one per line, `REPORT_NAME` if it is set, and `report done` on standard
//! error. `--exit N` ends with that code, `--spin` never ends, `--mib N` takes N MiB first, and
//! `--read` copies standard input to standard output.
//!
//! As a preview 1 module it ends with the code itself. A WASI 0.2 component can only say whether it
//! failed, and the host sees 1 for each code but 0.

use std::hint::black_box;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut code = 0;
    let mut held = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        println!("{argument}");
        match argument.as_str() {
            "--exit" => code = number(&mut arguments),
            "--mib" => held = vec![1_u8; number::<usize>(&mut arguments) << 20],
            "--read" => {
                if let Err(why) = std::io::copy(&mut std::io::stdin(), &mut std::io::stdout()) {
                    eprintln!("cannot copy standard input: {why}");
                }
            }
            "--spin" => loop {
                code = black_box(code);
            },
            _ => {}
        }
    }
    black_box(held);
    if let Ok(name) = std::env::var("REPORT_NAME") {
        println!("REPORT_NAME={name}");
    }
    eprintln!("report done");
    ExitCode::from(code)
}

/// The number after an option, printed like any argument; 1 where there is none.
fn number<N: std::str::FromStr + From<u8>>(arguments: &mut impl Iterator<Item = String>) -> N {
    let text = arguments.next().unwrap_or_default();
    println!("{text}");
    text.parse().unwrap_or_else(|_| N::from(1))
}
