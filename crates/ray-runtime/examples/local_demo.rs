//! Tasks and objects inside one process: `cargo run -p ray-runtime --example local_demo`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ray_core::error::RayResult;
use ray_runtime::{LocalRuntime, RuntimeConfig};

#[tokio::main]
async fn main() -> RayResult<()> {
    let config = RuntimeConfig { num_cpus: 4, max_workers: 8, object_store_memory: 64 << 20 };
    let runtime = LocalRuntime::new(config)?;

    let object_id = runtime.put_object(vec![10, 20, 30]).await?;
    println!("put and got:    {:?}", runtime.get_object(&object_id, 1000).await?);

    let double = |payload: &[u8]| -> RayResult<Vec<u8>> {
        Ok(payload.iter().map(|byte| byte.wrapping_mul(2)).collect())
    };
    runtime.register_function("double_bytes", Arc::new(double)).await;
    let result_id = runtime.submit_fn("double_bytes", vec![1, 2, 3]).await?;
    println!("doubled:        {:?}", runtime.get_object(&result_id, 5000).await?);

    let slow_sum = |payload: &[u8]| -> RayResult<Vec<u8>> {
        std::thread::sleep(Duration::from_millis(200));
        Ok(payload.iter().map(|&byte| u64::from(byte)).sum::<u64>().to_le_bytes().to_vec())
    };
    runtime.register_function("slow_sum", Arc::new(slow_sum)).await;
    let started = Instant::now();
    let mut result_ids = Vec::new();
    for part in 1..=4u8 {
        result_ids.push(runtime.submit_fn("slow_sum", vec![part; 100]).await?);
    }
    let mut sums = Vec::new();
    for result_id in &result_ids {
        let bytes = runtime.get_object(result_id, 5000).await?;
        sums.push(u64::from_le_bytes(bytes.try_into().expect("a sum has 8 bytes")));
    }
    println!("four sums:      {sums:?}, each of 0.2 s, in {:.2} s", started.elapsed().as_secs_f64());

    let usage = runtime.resource_usage().await?;
    println!("free of {}: {}", usage.total, usage.available);
    println!("objects:        {} in {} bytes", usage.object_store.objects, usage.object_store.used_bytes);
    runtime.shutdown().await;
    Ok(())
}
