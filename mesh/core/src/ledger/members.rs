//! Entries about members.

use super::{
    entry::{Member, Outcome, Reason},
    state::Ledger,
};
use crate::{id::NodeId, time::Millis};

impl Ledger {
    /// A node joins, or says its name and addresses anew. Draining outlasts a restart; a revoked key stays revoked.
    pub(super) fn member_joined(&mut self, node: &NodeId, member: &Member) -> Outcome {
        let Some(known) = self.members.get_mut(node) else {
            self.members.insert(node.clone(), member.clone());
            self.members_version += 1;
            return Outcome::Applied;
        };
        if known.revoked_at.is_some() {
            return Outcome::Rejected(Reason::RevokedMember(node.clone()));
        }
        if known.name == member.name && known.addresses == member.addresses {
            return Outcome::Stale;
        }
        known.name.clone_from(&member.name);
        known.addresses.clone_from(&member.addresses);
        self.members_version += 1;
        Outcome::Applied
    }

    /// A node is shut out. Its attempts are not ended here: it may still be writing, and cannot be told to stop. Nobody
    /// renews its lease any more, and when that is over they are lost like those of a dead node.
    pub(super) fn member_revoked(&mut self, node: &NodeId, at: Millis) -> Outcome {
        let Some(member) = self.members.get_mut(node) else {
            return Outcome::Rejected(Reason::UnknownMember(node.clone()));
        };
        if member.revoked_at.is_some() {
            return Outcome::Stale;
        }
        member.revoked_at = Some(at);
        self.members_version += 1;
        Outcome::Applied
    }

    /// A node takes no new work, or takes it again; what it has it finishes.
    pub(super) fn member_drained(&mut self, node: &NodeId, draining: bool, at: Millis) -> Outcome {
        let Some(member) = self.members.get_mut(node) else {
            return Outcome::Rejected(Reason::UnknownMember(node.clone()));
        };
        if member.revoked_at.is_some() {
            return Outcome::Rejected(Reason::RevokedMember(node.clone()));
        }
        if member.draining_since.is_some() == draining {
            return Outcome::Stale;
        }
        member.draining_since = draining.then_some(at);
        self.members_version += 1;
        Outcome::Applied
    }

    /// Whether a member is there and not revoked.
    pub(super) fn refuse_member(&self, node: &NodeId) -> Option<Reason> {
        match self.members.get(node) {
            None => Some(Reason::UnknownMember(node.clone())),
            Some(member) if member.revoked_at.is_some() => Some(Reason::RevokedMember(node.clone())),
            Some(_) => None,
        }
    }
}
