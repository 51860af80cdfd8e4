//! Arguments in, exit code out.

fn main() -> std::process::ExitCode {
    meter_gateway::cli::main()
}
