//! meter-gateway
fn main() {}
