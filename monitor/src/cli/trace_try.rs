//! trial
use anyhow::Result;
#[derive(clap::Args)]
pub(super) struct Args { cgroup: std::path::PathBuf, #[arg(long, default_value="60")] secs: u64 }
pub(super) async fn run(args: Args) -> Result<()> {
    let options = crate::trace::Options { service: "try".into(), cgroup: args.cgroup, duration: std::time::Duration::from_secs(args.secs) };
    let stop = super::asked_to_stop()?;
    let growth = crate::trace::follow(&options, stop, |look| tracing::warn!("{look:?}")).await?;
    println!("{}", serde_json::to_string_pretty(&growth)?);
    Ok(())
}
