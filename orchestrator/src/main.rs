//! The program: everything is in the library.

fn main() -> std::process::ExitCode {
    narae_orchestrator::cli::main()
}
