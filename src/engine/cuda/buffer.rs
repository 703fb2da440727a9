//! Device memory with a type and an owner.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use super::arg::Arg;
use super::device::Device;
use crate::engine::Elem;
use crate::{Error, Result};

/// Buffers are up to this many bytes longer than asked for: kernels load 16 bytes at a time.
const GRAIN: usize = 16;

/// `len` elements on a GPU, zeroed when made, freed when dropped. Empty ones have no address.
pub struct CudaBuf<T: Elem> {
    address: u64,
    len: usize,
    device: Arc<Device>,
    kind: PhantomData<T>,
}

impl<T: Elem> CudaBuf<T> {
    pub(super) fn zeros(device: &Arc<Device>, len: usize) -> Result<Self> {
        let address = device.allocate(Self::size(len))?;
        Ok(Self { address, len, device: device.clone(), kind: PhantomData })
    }

    /// Bytes that `len` elements take.
    pub fn size(len: usize) -> usize {
        (len * size_of::<T>()).next_multiple_of(GRAIN)
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address of element `offset`, as a kernel's argument.
    pub(super) fn at(&self, offset: usize) -> Arg {
        debug_assert!(offset <= self.len, "element {offset} of {}", self.len);
        Arg::Ptr(self.address + (offset * size_of::<T>()) as u64)
    }

    /// Address and bytes of `range`.
    ///
    /// # Errors
    /// `Error::Device` when the range does not fit: the caller's mistake, reported here before the device
    /// trips over it.
    pub(crate) fn span(&self, what: &str, range: Range<usize>) -> Result<(u64, usize)> {
        if range.start > range.end || range.end > self.len {
            return Err(Error::device(format!(
                "{what}: elements {range:?} do not fit a buffer of {}",
                self.len
            )));
        }
        let bytes = size_of::<T>();
        Ok((self.address + (range.start * bytes) as u64, range.len() * bytes))
    }
}

impl<T: Elem> Drop for CudaBuf<T> {
    fn drop(&mut self) {
        self.device.free(self.address, Self::size(self.len));
    }
}
