//! What the machine has, unless the configuration says otherwise.

use std::fs;
use std::path::Path;

use ray_core::config::Config;
use ray_core::error::RayResult;
use ray_core::resource::{CPU, GPU, MEMORY, OBJECT_STORE_MEMORY, Resources};

/// Memory that is assumed where the system does not tell, in bytes.
const ASSUMED_MEMORY: u64 = 4 << 30;

/// What a node of this machine has to give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hardware {
    /// Resources by name.
    pub(super) total: Resources,
    /// Size of the object store in bytes.
    pub(super) store_bytes: u64,
}

/// What is known of the graphics processors.
#[derive(Debug, Clone, Default)]
pub(super) struct FoundGpus {
    /// How many there are, if somebody has asked the vendor's library.
    pub(super) count: Option<u32>,
    /// Their type, such as "H100".
    pub(super) kind: Option<String>,
}

impl Hardware {
    /// Looks at the machine and the configuration. `host` is the address by which tasks may choose
    /// this node, as in Ray: the resource `node:<host>`.
    ///
    /// # Errors
    /// If an amount of the configuration makes no sense.
    pub(super) fn find(config: &Config, host: &str, is_head: bool, found: FoundGpus) -> RayResult<Self> {
        let memory = memory_bytes();
        let store_bytes = match config.object_store.capacity_bytes {
            // 30 %, as in Ray.
            0 => memory / 10 * 3,
            set => set,
        };
        let raylet = &config.raylet;
        let cpus = raylet.num_cpus.unwrap_or_else(|| processors() as f64);
        let gpus = raylet.num_gpus.unwrap_or_else(|| found.count.map_or_else(graphics_processors, f64::from));
        let heap = raylet.memory_bytes.unwrap_or_else(|| memory.saturating_sub(store_bytes));
        let mut total = Resources::from_units([
            (CPU, cpus),
            (GPU, gpus),
            (MEMORY, heap as f64),
            (OBJECT_STORE_MEMORY, store_bytes as f64),
        ])?
        .with(&format!("node:{host}"), 1.0)?;
        if is_head {
            total = total.with("node:__internal_head__", 1.0)?;
        }
        if let Some(kind) = found.kind.filter(|_| gpus > 0.0) {
            // By this tasks choose the type, as in Ray.
            total = total.with(&format!("accelerator_type:{kind}"), 1.0)?;
        }
        for (name, &amount) in &raylet.resources {
            total = total.with(name, amount)?;
        }
        Ok(Self { total, store_bytes })
    }
}

/// Processors that this process may run on.
fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn graphics_processors() -> f64 {
    fs::read_dir("/proc/driver/nvidia/gpus").map_or(0, |entries| entries.flatten().count()) as f64
}

/// Memory of the machine, or of the control group if that has less, in bytes.
fn memory_bytes() -> u64 {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| parse_meminfo(&text));
    let groups = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    // A group without a limit says "max", or a number far beyond any machine.
    let limit = |path: &&str| fs::read_to_string(Path::new(path)).ok()?.trim().parse::<u64>().ok();
    let group = groups.iter().filter_map(limit).min();
    machine.into_iter().chain(group).min().unwrap_or(ASSUMED_MEMORY)
}

fn parse_meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Name of this machine.
pub(super) fn hostname() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "localhost".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_wins_over_what_is_found() {
        let mut config = Config::default();
        config.raylet.num_cpus = Some(2.5);
        config.raylet.num_gpus = Some(0.0);
        config.raylet.resources.insert("gizmo".to_owned(), 3.0);
        config.object_store.capacity_bytes = 1 << 20;
        let found = FoundGpus { count: Some(8), kind: Some("H100".to_owned()) };
        let hardware = Hardware::find(&config, "127.0.0.1", true, found.clone()).unwrap();
        assert_eq!(hardware.store_bytes, 1 << 20);
        assert_eq!(hardware.total.get(CPU).to_f64(), 2.5);
        assert_eq!(hardware.total.get("gizmo").to_f64(), 3.0);
        assert_eq!(hardware.total.get("node:__internal_head__").to_f64(), 1.0);
        assert!(!hardware.total.get(MEMORY).is_zero());
        assert!(hardware.total.get(GPU).is_zero());
        assert!(hardware.total.get("accelerator_type:H100").is_zero());
        config.raylet.num_gpus = None;
        let hardware = Hardware::find(&config, "127.0.0.1", true, found).unwrap();
        assert_eq!(hardware.total.get(GPU).to_f64(), 8.0);
        assert_eq!(hardware.total.get("accelerator_type:H100").to_f64(), 1.0);
    }

    #[test]
    fn the_total_memory_is_read() {
        assert_eq!(parse_meminfo("MemFree: 1 kB\n"), None);
        assert_eq!(parse_meminfo("MemTotal:       2048 kB\nMemFree: 1 kB\n"), Some(2 << 20));
    }
}
