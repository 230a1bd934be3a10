//! burn, and the way of values into its tensors and back without a copy.
//!
//! Up to burn 0.21 a backend is a type. From 0.22 on a tensor's device names it.

#[cfg(all(flex, not(burn_0_22)))]
use burn_flex::{Flex, FlexDevice};
#[cfg(not(any(flex, burn_0_22)))]
use burn_ndarray::{NdArray, NdArrayDevice};
#[cfg(burn_0_22)]
use burn_tensor::Device;
use burn_tensor::{Tensor, TensorData};

/// The backend under test. No generic element types: every stack compiles these same sources.
#[cfg(not(any(flex, burn_0_22)))]
pub type B = NdArray<f32>;
#[cfg(not(any(flex, burn_0_22)))]
const CPU: NdArrayDevice = NdArrayDevice::Cpu;

/// The backend of the stack `flex`.
#[cfg(all(flex, not(burn_0_22)))]
pub type B = Flex;
#[cfg(all(flex, not(burn_0_22)))]
const CPU: FlexDevice = FlexDevice;

/// Rows and columns on the backend under test.
#[cfg(not(burn_0_22))]
pub type Dense = Tensor<B, 2>;
#[cfg(burn_0_22)]
pub type Dense = Tensor<2>;

/// Rows `(r, c)` into a burn tensor; takes the buffer, copies nothing.
pub fn tensor(data: Vec<f32>, rows: usize, columns: usize) -> Dense {
    #[cfg(burn_0_22)]
    let cpu = &device();
    #[cfg(not(burn_0_22))]
    let cpu = &CPU;
    Tensor::from_data(TensorData::new(data, [rows, columns]), cpu)
}

/// A burn tensor back into its buffer. The tensor must have no other owner, or burn walks it element by element.
pub fn values(tensor: Dense) -> Vec<f32> {
    #[cfg(burn_0_22)]
    let data = tensor.into_data().try_into_vec();
    #[cfg(not(burn_0_22))]
    let data = tensor.into_data().into_vec();
    data.expect("the backend's element type is f32")
}

/// The backend of the stacks of burn 0.22: the other one is not compiled in.
#[cfg(burn_0_22)]
#[allow(deprecated)] // burn-ndarray, from 0.22 on; that it is judged all the same is what its stacks are for
fn device() -> Device {
    #[cfg(flex)]
    return Device::flex();
    #[cfg(not(flex))]
    Device::ndarray()
}
