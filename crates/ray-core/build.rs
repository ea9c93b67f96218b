//! Compiles the protobuf files with protox, so that no `protoc` has to be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["common.proto", "gcs.proto", "raylet.proto", "object_store.proto"];
    let folder = "../../proto";
    for file in files {
        println!("cargo:rerun-if-changed={folder}/{file}");
    }
    let descriptors = protox::compile(files, [folder])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
