//! Data parallelism on the devices of one machine: a step's micro-batches are dealt to them.
//!
//! ```text
//! device 0   owns the trainer's model and the optimizer; its micro-batches are computed on the caller's thread
//! device k   has a replica and, for the length of a step, a thread: takes the trained weights over, computes its
//!            micro-batches, hands the gradient of each to device 0
//! ```
//!
//! Device 0 adds the gradients up in the order of the micro-batches, addend by addend, so a step on N devices is the step
//! of one device with as many micro-batches, to the bit where devices compute alike. The price is that the gradient of
//! each micro-batch crosses the host's memory, not only each step's sum: little for adapters, 4 bytes a trained weight
//! otherwise, where larger micro-batches are better than more of them.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, ScopedJoinHandle};

use burn::tensor::{Device, StreamId, Tensor, TensorData};

use crate::model::Gradients;
use crate::model::parameter::Parameters;
use crate::objective::{BatchReport, Objective, Pass};
use crate::train::TrainError;

/// A copy of the model on another device. What is trained in it is brought up to date at the beginning of each step.
#[derive(Clone)]
pub(crate) struct Replica<M> {
    model: M,
    /// Memory is pooled by stream, and streams are by thread unless named: threads of a step each would leave pools behind.
    stream: StreamId,
}

impl<M> Replica<M> {
    pub fn new(model: M) -> Self {
        Self { model, stream: StreamId::allocate() }
    }
}

/// A micro-batch in a step.
pub(crate) struct Share<'a, B> {
    pub batch: &'a B,
    /// Of this micro-batch, wherever it is computed.
    pub dropout_seed: u64,
}

/// What all passes of a step have in common.
pub(crate) struct Passes<'a, O> {
    pub objective: &'a O,
    /// As [`Pass::scale`].
    pub scale: f64,
    /// As [`Pass::neftune_noise_alpha`].
    pub neftune_noise_alpha: Option<f64>,
    pub stop: &'a (dyn Fn() -> bool + Sync),
}

/// What a replica made of a micro-batch: its addends of gradients by name, on the host, and the report.
type Made = Result<(Vec<(String, TensorData)>, BatchReport), TrainError>;

impl<O: Objective> Passes<'_, O> {
    /// The gradients of all micro-batches together, on the device of `model`, and a report of each.
    ///
    /// # Errors
    /// What the first micro-batch that failed said, whatever device it was on.
    pub fn over(
        &self,
        shares: &[Share<'_, O::Batch>],
        model: &O::Model,
        replicas: &mut [Replica<O::Model>],
    ) -> Result<(Gradients, Vec<BatchReport>), TrainError> {
        // A last step of an epoch may have fewer micro-batches than there are devices.
        let busy = replicas.len().min(shares.len().saturating_sub(1));
        match &mut replicas[..busy] {
            [] => self.alone(shares, model),
            replicas => self.together(shares, model, replicas),
        }
    }

    fn alone(
        &self,
        shares: &[Share<'_, O::Batch>],
        model: &O::Model,
    ) -> Result<(Gradients, Vec<BatchReport>), TrainError> {
        let mut gradients = Gradients::default();
        let reports = shares.iter().map(|share| self.pass(share, model, &mut gradients, self.stop));
        let reports = reports.collect::<Result<_, _>>()?;
        Ok((gradients, reports))
    }

    fn together(
        &self,
        shares: &[Share<'_, O::Batch>],
        model: &O::Model,
        replicas: &mut [Replica<O::Model>],
    ) -> Result<(Gradients, Vec<BatchReport>), TrainError> {
        let devices = 1 + replicas.len();
        let device = model.parameters().next().map(|p| p.value.device()).unwrap_or_else(Device::flex);
        let trained: Vec<TensorData> =
            model.parameters().filter(|p| p.trainable).map(|p| p.value.clone().into_data()).collect();
        let given_up = AtomicBool::new(false);
        let stop = || given_up.load(Ordering::Relaxed) || (self.stop)();
        thread::scope(|scope| {
            let mut others: Vec<Other<'_>> = Vec::with_capacity(replicas.len());
            for (index, replica) in replicas.iter_mut().enumerate() {
                // It holds nothing: a replica is ahead by one gradient at most.
                let (send, made) = sync_channel(0);
                let (trained, stop) = (&trained, &stop);
                let dealt = shares.iter().skip(index + 1).step_by(devices);
                let thread = scope.spawn(move || {
                    let Replica { model, stream } = replica;
                    stream.executes(|| self.beside(dealt, model, trained, stop, &send));
                });
                others.push(Other { made, thread: Some(thread) });
            }
            let mut gradients = Gradients::default();
            let mut reports = Vec::with_capacity(shares.len());
            for (index, share) in shares.iter().enumerate() {
                let report = match index % devices {
                    0 => self.pass(share, model, &mut gradients, self.stop),
                    other => others[other - 1].next().map(|(addends, report)| {
                        for (name, addend) in addends {
                            gradients.add(&name, placed(addend, &device));
                        }
                        report
                    }),
                };
                match report {
                    Ok(report) => reports.push(report),
                    Err(error) => {
                        // The others look up before their next layer; none of them can send any more.
                        given_up.store(true, Ordering::Relaxed);
                        return Err(error);
                    }
                }
            }
            Ok((gradients, reports))
        })
    }

    /// What a replica does in a step.
    fn beside<'b>(
        &self,
        dealt: impl Iterator<Item = &'b Share<'b, O::Batch>>,
        model: &mut O::Model,
        trained: &[TensorData],
        stop: &dyn Fn() -> bool,
        send: &SyncSender<Made>,
    ) where
        O::Batch: 'b,
    {
        for (parameter, values) in model.parameters_mut().filter(|p| p.trainable).zip(trained) {
            parameter.value = placed(values.clone(), &parameter.value.device());
        }
        for share in dealt {
            let mut gradients = Gradients::apart();
            let made = self.pass(share, model, &mut gradients, stop).map(|report| {
                let addends = gradients.into_addends().into_iter();
                (addends.map(|(name, gradient)| (name, gradient.into_data())).collect(), report)
            });
            let failed = made.is_err();
            // Nobody takes it where the step has failed elsewhere.
            if send.send(made).is_err() || failed {
                return;
            }
        }
    }

    fn pass(
        &self,
        share: &Share<'_, O::Batch>,
        model: &O::Model,
        gradients: &mut Gradients,
        stop: &dyn Fn() -> bool,
    ) -> Result<BatchReport, TrainError> {
        let mut pass = Pass {
            scale: self.scale,
            dropout_seed: share.dropout_seed,
            neftune_noise_alpha: self.neftune_noise_alpha,
            gradients,
            stop,
        };
        self.objective.accumulate(model, share.batch, &mut pass)
    }
}

/// A replica at work.
struct Other<'scope> {
    made: Receiver<Made>,
    thread: Option<ScopedJoinHandle<'scope, ()>>,
}

impl Other<'_> {
    /// What it made of its next micro-batch.
    fn next(&mut self) -> Made {
        match (self.made.recv(), self.thread.take()) {
            (Ok(made), thread) => {
                self.thread = thread;
                made
            }
            // It ends before its last micro-batch only by a panic, which goes on here with its own words.
            (Err(_), thread) => match thread.map(ScopedJoinHandle::join) {
                Some(Err(panic)) => resume_unwind(panic),
                Some(Ok(())) | None => Err(TrainError::Interrupted),
            },
        }
    }
}

/// Values of the host on a device, in their own format.
fn placed(values: TensorData, device: &Device) -> Tensor<2> {
    let format = values.dtype();
    Tensor::from_data(values, (device, format))
}
