//! The feed-forward block of a layer: one, or a mixture of experts.

use burn::tensor::Tensor;

use super::experts::{Experts, ExpertsTape, Routing};
use super::linear::Linear;
use super::mlp::{Mlp, MlpTape};
use super::packed::Packed;
use super::parameter::{Gradients, Parameter};

/// Which of the two.
#[derive(Debug, Clone)]
pub enum FeedForward {
    /// One block for all tokens.
    Dense(Mlp),
    /// Blocks that a router chooses from.
    Experts(Experts),
}

/// What the backward pass needs of one forward.
#[derive(Debug)]
pub enum FeedForwardTape {
    /// Of one block.
    Dense(MlpTape),
    /// Of a mixture.
    Experts(ExpertsTape),
}

impl FeedForward {
    /// `[n, hidden]` to the same.
    pub fn forward(&self, x: &Tensor<2>, packed: &Packed) -> (Tensor<2>, FeedForwardTape) {
        match self {
            Self::Dense(mlp) => {
                let (out, tape) = mlp.forward(x, packed);
                (out, FeedForwardTape::Dense(tape))
            }
            Self::Experts(experts) => {
                let (out, tape) = experts.forward(x, packed);
                (out, FeedForwardTape::Experts(tape))
            }
        }
    }

    /// The gradient at `x`, given that at the output. `x` recomputes the input. `balance` is for routers:
    /// [`Experts::backward`].
    pub fn backward(
        &self,
        x: impl Fn() -> Tensor<2>,
        dy: Tensor<2>,
        tape: FeedForwardTape,
        packed: &Packed,
        balance: Option<&Tensor<2>>,
        gradients: &mut Gradients,
    ) -> Tensor<2> {
        match (self, tape) {
            (Self::Dense(mlp), FeedForwardTape::Dense(tape)) => mlp.backward(x, dy, tape, packed, gradients),
            (Self::Experts(experts), FeedForwardTape::Experts(tape)) => {
                experts.backward(x, dy, tape, packed, balance, gradients)
            }
            (Self::Dense(_), FeedForwardTape::Experts(_)) | (Self::Experts(_), FeedForwardTape::Dense(_)) => {
                unreachable!("a tape is of the block that made it")
            }
        }
    }

    fn mlps(&self) -> &[Mlp] {
        match self {
            Self::Dense(mlp) => std::slice::from_ref(mlp),
            Self::Experts(experts) => &experts.experts,
        }
    }

    /// The linear layers, in the checkpoint's order. A router is none of them: it is computed in f32 whatever the rest is.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.mlps().iter().flat_map(Mlp::linears)
    }

    /// The router's weight and the linear layers, to be changed.
    pub fn parts_mut(&mut self) -> (Option<&mut Parameter>, impl Iterator<Item = &mut Linear>) {
        let (router, mlps) = match self {
            Self::Dense(mlp) => (None, std::slice::from_mut(mlp)),
            Self::Experts(experts) => (Some(&mut experts.router), experts.experts.as_mut_slice()),
        };
        (router, mlps.iter_mut().flat_map(Mlp::linears_mut))
    }

    /// The router's weight, where there is one.
    pub fn router(&self) -> Option<&Parameter> {
        match self {
            Self::Dense(_) => None,
            Self::Experts(experts) => Some(&experts.router),
        }
    }
}

impl FeedForwardTape {
    /// How tokens were spread, where there are experts.
    pub fn routing(&self) -> Option<Routing> {
        match self {
            Self::Dense(_) => None,
            Self::Experts(tape) => Some(tape.routing()),
        }
    }
}
