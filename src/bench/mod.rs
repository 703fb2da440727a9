//! placeholder
pub fn run(_: &crate::config::Config, _: f64, _: bool, _: &crate::dist::World) -> crate::Result<()> {
    Ok(())
}
