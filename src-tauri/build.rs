//! Declares the app's commands, so that a window may call only those that its capability file names.

fn main() {
    let manifest = tauri_build::AppManifest::new().commands(&["view", "call", "start_engine", "open_node", "play"]);
    if let Err(error) = tauri_build::try_build(tauri_build::Attributes::new().app_manifest(manifest)) {
        println!("cargo::error={error:#}");
    }
}
