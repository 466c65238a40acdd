//! A step's products: panels times rows, and where the results go.
#![expect(unsafe_code, reason = "kernels; chunks of a phase write disjoint columns or rows")]

use std::ops::Range;

use crate::{
    decoder::{Linear, Site},
    kernels::product::{PANEL, Product, Rows},
    matrix::PackedMatrix,
    plan::SEGMENT,
    step::Step,
};

impl Step {
    pub(crate) fn multiply(&self, matrix: &PackedMatrix, product: &Product) {
        // SAFETY: a packed matrix has whole panels of its depth, callers give rows that reach as far; `Kernels::of`
        // checked the processor.
        unsafe { self.kernels.product(matrix.format)(product) }
    }

    /// One panel of the adapters' A over one run of tokens.
    pub(crate) fn run_low(&self, layer: usize, site: Site, run: usize, panel: usize) {
        let (sequence, tokens) = &self.plan.adapted[run];
        let Some(low) = self.adapted(*sequence, layer, site).filter(|low| panel < low.down.panels) else { return };
        self.multiply(
            &low.down,
            &Product {
                panel: low.down.panel(panel).as_ptr(),
                depth: low.down.depth,
                rows: self.input(site).skip_rows(tokens.start),
                tokens: tokens.len(),
                out: self.low.at(tokens.start * self.low_stride + panel * PANEL),
                out_stride: self.low_stride,
                accumulate: false,
            },
        );
    }

    pub(crate) fn run_product(&self, layer: usize, site: Site, panels: usize, chunk: usize, worker: usize) {
        let linear = self.decoder.linear(layer, site);
        let segments = self.rows(site).div_ceil(SEGMENT);
        let (group, segment) = (chunk / segments, chunk % segments);
        let rows = segment * SEGMENT..((segment + 1) * SEGMENT).min(self.rows(site));
        for panel in group * panels..((group + 1) * panels).min(linear.matrix.panels) {
            self.run_panel(layer, site, linear, panel, rows.clone(), worker);
        }
    }

    fn run_panel(&self, layer: usize, site: Site, linear: &Linear, panel: usize, rows: Range<usize>, worker: usize) {
        let scratch = &self.work.scratch[worker].product;
        self.multiply(
            &linear.matrix,
            &Product {
                panel: linear.matrix.panel(panel).as_ptr(),
                depth: linear.matrix.depth,
                rows: self.input(site).skip_rows(rows.start),
                tokens: rows.len(),
                out: scratch.ptr(),
                out_stride: PANEL,
                accumulate: false,
            },
        );
        if site != Site::Head {
            self.add_adapters(layer, site, panel, &rows, worker);
        }
        // SAFETY: a worker's scratch is its own.
        let out = unsafe { scratch.slice_mut(0, rows.len() * PANEL) };
        if let Some(bias) = &linear.bias {
            let bias = &bias[panel * PANEL..][..PANEL];
            out.chunks_mut(PANEL).for_each(|row| row.iter_mut().zip(bias).for_each(|(y, b)| *y += b));
        }
        self.deliver(site, panel, rows, out);
    }

    /// Adds B · (A · x) to the scratch rows of tokens that have an adapter.
    fn add_adapters(&self, layer: usize, site: Site, panel: usize, rows: &Range<usize>, worker: usize) {
        for (sequence, tokens) in &self.plan.adapted {
            let tokens = tokens.start.max(rows.start)..tokens.end.min(rows.end);
            let Some(low) = self.adapted(*sequence, layer, site).filter(|_| !tokens.is_empty()) else { continue };
            self.multiply(
                &low.up,
                &Product {
                    panel: low.up.panel(panel).as_ptr(),
                    depth: low.up.depth,
                    rows: Rows::floats(self.low.at(tokens.start * self.low_stride), self.low_stride),
                    tokens: tokens.len(),
                    out: self.work.scratch[worker].product.at((tokens.start - rows.start) * PANEL),
                    out_stride: PANEL,
                    accumulate: true,
                },
            );
        }
    }

    /// Puts a panel's outputs where the site's go.
    fn deliver(&self, site: Site, panel: usize, rows: Range<usize>, out: &mut [f32]) {
        let (work, a) = (&self.work, &self.architecture);
        let each = |out: &mut [f32], to: &mut dyn FnMut(usize, &[f32])| {
            out.chunks(PANEL).zip(rows.clone()).for_each(|(values, row)| to(row, values));
        };
        // SAFETY (all below): the chunk owns these columns of these rows; kernels as in `multiply`.
        match site {
            Site::QueryKeyValue => each(out, &mut |row, values| unsafe {
                work.qkv.slice_mut(row * work.qkv_stride + panel * PANEL, PANEL).copy_from_slice(values);
            }),
            Site::GateUp => unsafe {
                let to = work.gated.x.at(rows.start * work.gated.stride + panel * (PANEL / 2));
                (self.kernels.gate)(a.activation, rows.len(), out.as_ptr(), to, work.gated.stride);
            },
            Site::Output | Site::Down => {
                let stride = work.normed.stride;
                each(out, &mut |row, values| {
                    let at = row * stride + panel * PANEL;
                    if a.post_norms {
                        unsafe { work.branch.slice_mut(at, PANEL) }.copy_from_slice(values);
                    } else {
                        let residual = unsafe { work.residual.slice_mut(at, PANEL) };
                        residual.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
                    }
                });
            }
            Site::Router => {
                let Some(space) = &work.experts else { return };
                each(out, &mut |row, values| unsafe {
                    space.logits.slice_mut(row * space.logits_stride + panel * PANEL, PANEL).copy_from_slice(values);
                });
            }
            Site::Head => {
                if let Some(cap) = a.logit_soft_cap {
                    unsafe { (self.kernels.soft_cap)(cap, out.as_mut_ptr(), out.len()) };
                }
                let columns = PANEL.min(a.vocabulary - panel * PANEL);
                each(out, &mut |row, values| unsafe {
                    let to = self.logits.0.add(row * a.vocabulary + panel * PANEL);
                    std::slice::from_raw_parts_mut(to, columns).copy_from_slice(&values[..columns]);
                });
            }
        }
    }
}
