//! `GET /v1/models`, and what a request's `model` means.

use mloc_engine::forward::AdapterId;
use serde_json::{Value, json};

use super::Chosen;
use crate::{
    model::{Adapter, Card},
    refusal::Refusal,
    schema::nearest,
};

/// Adapters that are served, in the order they came.
#[derive(Debug, Default)]
pub struct Adapters {
    list: Vec<Adapter>,
}

impl Adapters {
    /// These.
    pub fn new(list: Vec<Adapter>) -> Self {
        Self { list }
    }

    /// By its own name.
    pub fn find(&self, name: &str) -> Option<&Adapter> {
        self.list.iter().find(|adapter| adapter.name == name)
    }

    /// One more; it takes the place of one with its name, whose id is returned.
    pub fn put(&mut self, adapter: Adapter) -> Option<AdapterId> {
        let old = self.take(&adapter.name);
        self.list.push(adapter);
        old
    }

    /// One less.
    pub fn take(&mut self, name: &str) -> Option<AdapterId> {
        let at = self.list.iter().position(|adapter| adapter.name == name)?;
        Some(self.list.remove(at).id)
    }

    /// What a request's `model` names: the base model (also by no name), `served_name:adapter`, or, as with vLLM, an
    /// adapter by its own name.
    ///
    /// # Errors
    /// When there is none: its message lists what there is.
    pub fn choose(&self, card: &Card, name: Option<&str>) -> Result<Chosen, Refusal> {
        let base = &card.served_name;
        let Some(name) = name.filter(|name| name != base) else {
            return Ok(Chosen { name: base.clone(), adapter: None });
        };
        let adapter = name.strip_prefix(base.as_str()).and_then(|rest| rest.strip_prefix(':')).unwrap_or(name);
        if let Some(adapter) = self.find(adapter) {
            return Ok(Chosen { name: format!("{base}:{}", adapter.name), adapter: Some(adapter.id) });
        }
        let names = self.names(card);
        let near = nearest(name, names.iter().map(String::as_str));
        Err(Refusal::no_model(format!("model {name:?} is not served here{near}; there is {}", names.join(", "))))
    }

    fn names(&self, card: &Card) -> Vec<String> {
        let adapters = self.list.iter().map(|adapter| format!("{}:{}", card.served_name, adapter.name));
        [card.served_name.clone()].into_iter().chain(adapters).collect()
    }

    /// OpenAI's list.
    pub fn told(&self, card: &Card) -> Value {
        let adapters = self.list.iter().map(|adapter| told_adapter(adapter, card));
        let data: Vec<Value> = [told_base(card)].into_iter().chain(adapters).collect();
        json!({ "object": "list", "data": data })
    }

    /// One of it.
    ///
    /// # Errors
    /// As [`Self::choose`].
    pub fn told_one(&self, card: &Card, name: &str) -> Result<Value, Refusal> {
        let chosen = self.choose(card, Some(name))?;
        let adapter = self.list.iter().find(|adapter| Some(adapter.id) == chosen.adapter);
        Ok(adapter.map_or_else(|| told_base(card), |adapter| told_adapter(adapter, card)))
    }
}

fn told_base(card: &Card) -> Value {
    json!({
        "id": card.served_name, "object": "model", "created": card.created, "owned_by": "mloc", "root": card.root,
        "parent": null, "max_model_len": card.max_length,
    })
}

fn told_adapter(adapter: &Adapter, card: &Card) -> Value {
    json!({
        "id": format!("{}:{}", card.served_name, adapter.name), "object": "model", "created": adapter.created,
        "owned_by": "mloc", "root": adapter.path, "parent": card.served_name, "max_model_len": card.max_length,
    })
}
