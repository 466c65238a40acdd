//! A mixture of experts in place of one feed-forward block, forward and backward (Fedus et al., arXiv 2101.03961; Jiang et
//! al., arXiv 2401.04088).
//!
//! A router gives each token a probability for each expert; the most probable few compute it, each weighted by its
//! probability. Tokens are gathered by expert, so that an expert computes its own tokens only. Which these are is decided
//! on the host: one read-back for each such layer.

use burn::tensor::activation::softmax;
use burn::tensor::{IndexingUpdateOp, Int, Tensor};

use super::mlp::{Mlp, MlpTape};
use super::packed::{Packed, int_tensor};
use super::parameter::{Gradients, Parameter, host_values, matrix};

/// A router and its experts.
#[derive(Debug, Clone)]
pub struct Experts {
    /// `[experts, hidden]`; always in f32.
    pub router: Parameter,
    /// All of them.
    pub experts: Vec<Mlp>,
    /// How many compute a token.
    pub per_token: usize,
    /// Whether the weights of those that compute a token are divided by their sum.
    pub normalised: bool,
}

/// What the backward pass needs of one forward.
#[derive(Debug)]
pub struct ExpertsTape {
    routes: Routes,
    passes: Vec<Option<ExpertPass>>,
}

/// Who computes what.
#[derive(Debug)]
struct Routes {
    /// The router's, `[tokens, experts]`.
    probabilities: Tensor<2>,
    /// 1 where an expert computes a token.
    chosen: Tensor<2>,
    /// What an expert's output for a token is multiplied by.
    weights: Tensor<2>,
    /// Of each token, the sum of its experts' probabilities, `[tokens, 1]`, where weights are divided by it.
    sums: Option<Tensor<2>>,
    /// Each expert's tokens, in order.
    tokens: Vec<Vec<i64>>,
}

/// An expert that has tokens.
#[derive(Debug)]
struct ExpertPass {
    mlp: MlpTape,
    /// `[its tokens, hidden]`.
    output: Tensor<2>,
}

/// How tokens were spread over the experts of a layer.
#[derive(Debug, Clone)]
pub struct Routing {
    /// Of each expert, how many tokens it computed.
    pub counts: Vec<usize>,
    /// Of each expert, its probabilities summed over the tokens, `[1, experts]`.
    pub probabilities: Tensor<2>,
    /// How many tokens there were.
    pub tokens: usize,
}

impl Experts {
    /// `[tokens, hidden]` to the same.
    pub fn forward(&self, x: &Tensor<2>, packed: &Packed) -> (Tensor<2>, ExpertsTape) {
        let routes = self.routes(x);
        let mut out = x.zeros_like();
        let mut passes = Vec::with_capacity(self.experts.len());
        for (index, expert) in self.experts.iter().enumerate() {
            let pass = routes.of(index, x).map(|tokens| {
                let (output, mlp) = expert.forward(&x.clone().select(0, tokens.clone()), packed);
                let weighted = output.clone() * routes.weights_of(index, &tokens);
                out = out.clone().select_assign(0, tokens, weighted, IndexingUpdateOp::Add);
                ExpertPass { mlp, output }
            });
            passes.push(pass);
        }
        (out, ExpertsTape { routes, passes })
    }

    /// The gradient at `x`, given that at the output. `x` recomputes the input. `balance` is the gradient at each token's
    /// probabilities, `[1, experts]`, of a loss on the routing.
    pub fn backward(
        &self,
        x: impl Fn() -> Tensor<2>,
        dy: Tensor<2>,
        tape: ExpertsTape,
        packed: &Packed,
        balance: Option<&Tensor<2>>,
        gradients: &mut Gradients,
    ) -> Tensor<2> {
        let (x, ExpertsTape { routes, passes }) = (x(), tape);
        let [count, _] = x.dims();
        let mut dx = x.zeros_like();
        let mut d_weights = Vec::with_capacity(self.experts.len());
        for (index, (expert, pass)) in self.experts.iter().zip(passes).enumerate() {
            let nothing = Tensor::<2>::zeros([count, 1], &x.device());
            let (Some(pass), Some(tokens)) = (pass, routes.of(index, &x)) else {
                // Without a token its gradient is 0, and the optimizer is to see that and not nothing.
                let parameters = expert.linears().into_iter().flat_map(|linear| linear.parameters());
                parameters.filter(|p| p.trainable).for_each(|p| gradients.add(&p.name, p.value.zeros_like()));
                d_weights.push(nothing);
                continue;
            };
            let ExpertPass { mlp, output } = pass;
            let own = dy.clone().select(0, tokens.clone());
            let d_weight = (own.clone() * output).sum_dim(1);
            d_weights.push(nothing.select_assign(0, tokens.clone(), d_weight, IndexingUpdateOp::Add));
            let d_output = own * routes.weights_of(index, &tokens);
            let input = || x.clone().select(0, tokens.clone());
            let d_input = expert.backward(input, d_output, mlp, packed, gradients);
            dx = dx.select_assign(0, tokens.clone(), d_input, IndexingUpdateOp::Add);
        }
        let d_logits = routes.backward(Tensor::cat(d_weights, 1), balance);
        if self.router.trainable {
            gradients.add(&self.router.name, d_logits.clone().transpose().matmul(x));
        }
        dx + d_logits.matmul(self.router.value.clone())
    }

    fn routes(&self, x: &Tensor<2>) -> Routes {
        let probabilities = softmax(x.clone().matmul(self.router.value.clone().transpose()), 1);
        let [count, experts] = probabilities.dims();
        let mut tokens = vec![Vec::new(); experts];
        let mut chosen = vec![0.0; count * experts];
        for (token, row) in host_values(probabilities.clone()).chunks(experts).enumerate() {
            let mut order: Vec<usize> = (0..experts).collect();
            order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
            for expert in &order[..self.per_token] {
                tokens[*expert].push(token as i64);
                chosen[token * experts + expert] = 1.0;
            }
        }
        let chosen = matrix(chosen, &[count, experts], &x.device());
        let weights = probabilities.clone() * chosen.clone();
        let sums = self.normalised.then(|| weights.clone().sum_dim(1));
        let weights = match &sums {
            Some(sums) => weights / sums.clone(),
            None => weights,
        };
        Routes { probabilities, chosen, weights, sums, tokens }
    }
}

impl Routes {
    /// An expert's tokens, if it has any.
    fn of(&self, expert: usize, x: &Tensor<2>) -> Option<Tensor<1, Int>> {
        let tokens = &self.tokens[expert];
        (!tokens.is_empty()).then(|| int_tensor(tokens.clone(), &x.device()))
    }

    /// `[its tokens, 1]`.
    fn weights_of(&self, expert: usize, tokens: &Tensor<1, Int>) -> Tensor<2> {
        self.weights.clone().narrow(1, expert, 1).select(0, tokens.clone())
    }

    /// The gradient at the router's logits, given that at the weights.
    fn backward(&self, d_weights: Tensor<2>, balance: Option<&Tensor<2>>) -> Tensor<2> {
        let mut d = match &self.sums {
            // Of q/Σq: (d − Σ d·w) / Σq.
            Some(sums) => {
                let along = (d_weights.clone() * self.weights.clone()).sum_dim(1);
                (d_weights - along) / sums.clone()
            }
            None => d_weights,
        } * self.chosen.clone();
        if let Some(balance) = balance {
            d = d + balance.clone();
        }
        let along = (d.clone() * self.probabilities.clone()).sum_dim(1);
        (d - along) * self.probabilities.clone()
    }
}

impl ExpertsTape {
    /// How tokens were spread.
    pub fn routing(&self) -> Routing {
        let Routes { probabilities, tokens, .. } = &self.routes;
        Routing {
            counts: tokens.iter().map(Vec::len).collect(),
            probabilities: probabilities.clone().sum_dim(0),
            tokens: probabilities.dims()[0],
        }
    }
}

/// The load-balancing loss over all layers with experts (Fedus et al., equations 4 to 6, as transformers'
/// `load_balancing_loss_func` has it for several experts a token): `E · Σ f·P` over the `E` experts, with `f` the tokens
/// that an expert computed and `P` its probabilities, each as a mean over the tokens of all layers. 1 per expert of a token
/// is perfect balance.
#[derive(Debug, Clone, PartialEq)]
pub struct Balance {
    /// The loss.
    pub loss: f64,
    /// Its derivative at each expert's probability for any token of any layer.
    slopes: Vec<f32>,
}

impl Balance {
    /// Of these layers; `None` without any.
    pub fn of(layers: &[Routing]) -> Option<Self> {
        let experts = layers.first()?.counts.len();
        let rows = layers.iter().map(|layer| layer.tokens).sum::<usize>() as f64;
        let sums = Tensor::cat(layers.iter().map(|layer| layer.probabilities.clone()).collect(), 0).sum_dim(0);
        let shares =
            (0..experts).map(|expert| layers.iter().map(|layer| layer.counts[expert]).sum::<usize>() as f64 / rows);
        let slopes: Vec<f64> = shares.map(|share| experts as f64 * share / rows).collect();
        let loss = slopes.iter().zip(host_values(sums)).map(|(slope, sum)| slope * f64::from(sum)).sum();
        Some(Self { loss, slopes: slopes.into_iter().map(|slope| slope as f32).collect() })
    }

    /// Its gradient, `[1, experts]`, times `weight`, beside `like`.
    pub(super) fn gradient(&self, weight: f64, like: &Tensor<2>) -> Tensor<2> {
        matrix(self.slopes.clone(), &[1, self.slopes.len()], &like.device()).mul_scalar(weight)
    }
}
