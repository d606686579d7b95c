//! What an optimizer keeps of a tensor, on the GPU.

use super::buffer::Buffer;
use super::device::Device;
use super::memory::Memory;
use crate::backend::ComputeDtype;
use crate::optimizer::{StatePart, StateValues};

/// The state of one tensor.
#[derive(Debug)]
pub struct State {
    parts: Vec<Part>,
}

#[derive(Debug)]
enum Part {
    Floats(Buffer),
    Codes { memory: Memory, len: usize },
}

impl Part {
    fn new(device: &Device, values: &StateValues, on_host: bool) -> Self {
        let alloc = |bytes| if on_host { device.alloc_on_host(bytes) } else { device.alloc(bytes) };
        match values {
            StateValues::Floats(values) => {
                let (memory, len) = (alloc(4 * values.len()), values.len());
                let mut buffer = Buffer { memory, len, dtype: ComputeDtype::F32 };
                buffer.upload(device, values);
                Self::Floats(buffer)
            }
            StateValues::Codes(codes) => {
                let memory = alloc(codes.len());
                device.upload(codes, &memory);
                Self::Codes { memory, len: codes.len() }
            }
        }
    }
}

impl State {
    pub(super) fn zeros(device: &Device, parts: &[StatePart], on_host: bool) -> Self {
        Self { parts: parts.iter().map(|part| Part::new(device, &part.zeros(), on_host)).collect() }
    }

    pub(super) fn download(&self, device: &Device) -> Vec<StateValues> {
        let values = self.parts.iter().map(|part| match part {
            Part::Floats(buffer) => StateValues::Floats(buffer.download(device).into()),
            Part::Codes { memory, len } => StateValues::Codes(device.download::<u8>(memory, *len).into()),
        });
        values.collect()
    }

    pub(super) fn upload(&mut self, device: &Device, values: &[StateValues]) {
        assert!(values.len() == self.parts.len(), "a state is set as a whole");
        for (part, values) in self.parts.iter_mut().zip(values) {
            match (part, values) {
                (Part::Floats(buffer), StateValues::Floats(values)) => buffer.upload(device, values),
                (Part::Codes { memory, .. }, StateValues::Codes(codes)) => device.upload(codes, memory),
                _ => unreachable!("the values of a part are of its kind"),
            }
        }
    }

    /// Whether moments are codes of 8 bits.
    pub(super) fn has_codes(&self) -> bool {
        self.parts.iter().any(|part| matches!(part, Part::Codes { .. }))
    }

    /// The address of each part; 0 for those that there are not.
    pub(super) fn addresses(&self, device: &Device) -> [u64; 4] {
        let mut addresses = [0; 4];
        for (address, part) in addresses.iter_mut().zip(&self.parts) {
            let (memory, bytes) = match part {
                Part::Floats(buffer) => (&buffer.memory, 4 * buffer.len),
                Part::Codes { memory, len } => (memory, *len),
            };
            *address = device.pointer(memory, bytes).unwrap_or(0);
        }
        addresses
    }
}
