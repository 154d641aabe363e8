//! The project's verbs: `cargo xtask run | test | check | cross`.

fn main() {}
