//! Stub.
#[derive(clap::Subcommand)]
pub enum Command {
    Watch,
}
pub async fn run(_: Command) -> anyhow::Result<std::process::ExitCode> {
    Ok(std::process::ExitCode::SUCCESS)
}
