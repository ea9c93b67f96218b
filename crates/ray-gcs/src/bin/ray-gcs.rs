//! The control plane as a program of its own.
//!
//! Prints one line of JSON, `{"address": "host:port"}`, once it can be reached; logs to standard error; ends
//! on SIGTERM or SIGINT.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use ray_core::config::{Config, GcsConfig, GcsStorage};
use ray_gcs::GcsServer;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

/// The control plane of a Ray Rust cluster. Further settings come from the file that RAY_RUST_CONFIG names
/// and from variables named RAY_RUST_GCS_*.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Address to listen at; port 0 takes any free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Where tables are kept.
    #[arg(long)]
    storage: Option<Storage>,
    /// File of the redb storage.
    #[arg(long)]
    storage_path: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Storage {
    /// Lost with the process.
    Memory,
    /// Kept on disk.
    Redb,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let config = Config::from_env().context("cannot read the configuration")?;
    ray_core::log::init_logging_at("ray-gcs", config.log.directory.as_deref(), &config.log.level)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(args.listen, with_args(config.gcs, &args)))
}

fn with_args(config: GcsConfig, args: &Args) -> GcsConfig {
    let storage = args.storage.map_or(config.storage, |storage| match storage {
        Storage::Memory => GcsStorage::Memory,
        Storage::Redb => GcsStorage::Redb,
    });
    let storage_path = args.storage_path.clone().or(config.storage_path);
    GcsConfig { storage, storage_path, ..config }
}

async fn run(listen: SocketAddr, config: GcsConfig) -> anyhow::Result<()> {
    // Before anything can be told to end it.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let listener = TcpListener::bind(listen).await.with_context(|| format!("cannot listen at {listen}"))?;
    let server = GcsServer::start(&config, listener).await?;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{{\"address\": \"{}\"}}", server.address())?;
    stdout.flush()?;
    tokio::select! {
        _ = terminate.recv() => info!("told to end by SIGTERM"),
        _ = interrupt.recv() => info!("told to end by SIGINT"),
    }
    server.shutdown().await;
    Ok(())
}
