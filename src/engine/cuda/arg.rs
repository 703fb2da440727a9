//! A kernel's argument.

use std::ffi::c_void;

/// A kernel's argument, in the order of its parameters.
#[derive(Clone, Copy, Debug)]
pub enum Arg {
    /// A device address.
    Ptr(u64),
    U32(u32),
    F32(f32),
    U64(u64),
    F64(f64),
}

impl Arg {
    /// The address of a `Ptr`; 0 for anything else.
    pub fn pointer(self) -> u64 {
        if let Self::Ptr(address) = self { address } else { 0 }
    }

    /// The address `bytes` after this one.
    pub fn after(self, bytes: usize) -> Self {
        Self::Ptr(self.pointer() + bytes as u64)
    }

    pub fn kind(&self) -> ArgKind {
        match self {
            Self::Ptr(_) => ArgKind::Ptr,
            Self::U32(_) => ArgKind::U32,
            Self::F32(_) => ArgKind::F32,
            Self::U64(_) => ArgKind::U64,
            Self::F64(_) => ArgKind::F64,
        }
    }

    pub(super) fn address(&self) -> *mut c_void {
        let place: *const c_void = match self {
            Self::Ptr(v) | Self::U64(v) => std::ptr::from_ref(v).cast(),
            Self::U32(v) => std::ptr::from_ref(v).cast(),
            Self::F32(v) => std::ptr::from_ref(v).cast(),
            Self::F64(v) => std::ptr::from_ref(v).cast(),
        };
        place.cast_mut()
    }
}

/// The kind of a kernel's parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArgKind {
    /// A device address.
    Ptr,
    U32,
    U64,
    F32,
    F64,
}
