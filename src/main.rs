//! The program: parse the command line, hand over, tell how it ended.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    match Box::pin(chandler::cli::run()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if let Some(chandler::cli::Quiet(code)) = error.downcast_ref() {
                return ExitCode::from(*code);
            }
            eprintln!("chandler: {error:#}");
            ExitCode::FAILURE
        }
    }
}
