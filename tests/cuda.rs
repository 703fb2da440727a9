//! The GPU path on the software device.
