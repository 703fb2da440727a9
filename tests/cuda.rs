//! The GPU path on the software device.

mod attention;
mod losses;
mod support;
