//! The binary `drover`.

fn main() {}
