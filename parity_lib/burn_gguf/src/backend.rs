//! burn, and the way of values into its tensors and back without a copy.

#[cfg(flex)]
use burn_flex::{Flex, FlexDevice};
#[cfg(not(flex))]
use burn_ndarray::{NdArray, NdArrayDevice};
use burn_tensor::{Tensor, TensorData};

/// The backend under test. No generic element types: every stack compiles these same sources.
#[cfg(not(flex))]
pub type B = NdArray<f32>;
#[cfg(not(flex))]
const CPU: NdArrayDevice = NdArrayDevice::Cpu;

/// The backend of the stack `flex`.
#[cfg(flex)]
pub type B = Flex;
#[cfg(flex)]
const CPU: FlexDevice = FlexDevice;

/// Rows `(r, c)` into a burn tensor; takes the buffer, copies nothing.
pub fn tensor(data: Vec<f32>, rows: usize, columns: usize) -> Tensor<B, 2> {
    Tensor::from_data(TensorData::new(data, [rows, columns]), &CPU)
}

/// A burn tensor back into its buffer. The tensor must have no other owner, or burn walks it element by element.
pub fn values(tensor: Tensor<B, 2>) -> Vec<f32> {
    tensor.into_data().into_vec().expect("the backend's element type is f32")
}
