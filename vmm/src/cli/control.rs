//! `vmsrs control`: a command for a running monitor.

use std::error::Error;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::chain;

/// `vmsrs control`.
#[derive(Args)]
#[command(after_help = crate::control::HELP)]
pub struct ControlArgs {
    /// The socket that was given to `vmsrs run --control`
    socket: PathBuf,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Sends the command and prints the answer. Exits 0, or 1 when the monitor refuses the command, or 125.
pub fn run(arguments: &ControlArgs) -> ExitCode {
    match ask(arguments) {
        Ok(answer) => match answer.get("ok") {
            Some(result) => {
                println!("{result:#}");
                ExitCode::SUCCESS
            }
            None => {
                let error = answer.get("error").and_then(Value::as_str);
                eprintln!("vmsrs control: {}", error.unwrap_or("no proper answer"));
                ExitCode::FAILURE
            }
        },
        Err(error) => {
            let socket = arguments.socket.display();
            eprintln!("vmsrs control: {socket}: {}", chain(error.as_ref()));
            ExitCode::from(125)
        }
    }
}

fn ask(arguments: &ControlArgs) -> Result<Value, Box<dyn Error>> {
    let command = arguments.command.join(" ");
    if command.contains('\n') {
        return Err("a command is one line".into());
    }
    let mut stream = UnixStream::connect(&arguments.socket)?;
    match stream.write_all(format!("{command}\n").as_bytes()) {
        // Who is refused is told so before it has said anything.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        sent => sent?,
    }
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}
