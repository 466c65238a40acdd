//! Who calls. On a loopback bind the machine's own users are trusted; on any other a bearer token names its user.
//!
//! A token is `NAME.MAC` with MAC = HMAC-SHA256(key, "mloc-user/1" ‖ NAME), hex, and a key every member derives from
//! the join token: any node can check it and nothing is stored, so none can be taken back by itself.
//! `admin` may act for any owner.
//!
//! Who may do what: acting on a task (submit, cancel) takes its owner's token or the admin's; acting on a node (drain,
//! revoke) and taking a backup of all that the ledger holds takes the admin's. Reading takes any good token: every user of a
//! mesh sees every task, log, node and usage row of it, so that people can see who holds what. So are artifacts: any token
//! reads them, and any task takes them by the id of the task that made them. Files that came along with a task are had by
//! who knows their digest, which is told to the admin only; uploading takes any token and counts against one bound for all.
//! Keep secrets out of task files; `secretsFrom` is for them.

use hmac::{Hmac, Mac, digest::KeyInit};
use sha2::Sha256;

use crate::ControlError;

/// The user who may act for any owner.
pub const ADMIN: &str = "admin";

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The user's name.
    pub user: String,
}

impl Caller {
    /// Somebody who may act for any owner.
    pub fn admin() -> Self {
        Self { user: ADMIN.to_owned() }
    }

    /// Whether the caller may act for this owner.
    ///
    /// # Errors
    /// [`ControlError::Forbidden`], saying who it is and who would do.
    pub fn may_act_for(&self, owner: &str) -> Result<(), ControlError> {
        if self.user == ADMIN || self.user == owner {
            return Ok(());
        }
        Err(ControlError::Forbidden(format!(
            "metadata.owner is `{owner}`, and this token is `{}`'s: use {owner}'s token or the admin's",
            self.user
        )))
    }
}

/// Makes and checks user tokens.
#[derive(Clone)]
pub struct UserTokens {
    key: [u8; 32],
}

impl std::fmt::Debug for UserTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UserTokens(redacted)")
    }
}

impl UserTokens {
    /// With a key derived from the join token.
    pub fn new(key: [u8; 32]) -> Self {
        Self { key }
    }

    /// The token of a user.
    pub fn issue(&self, user: &str) -> String {
        format!("{user}.{}", hex::encode(self.mac(user).finalize().into_bytes()))
    }

    /// The user a token names.
    ///
    /// # Errors
    /// [`ControlError::Unauthorized`] when it is not one of this mesh's.
    pub fn check(&self, token: &str) -> Result<Caller, ControlError> {
        let refused = || {
            ControlError::Unauthorized(
                "this bearer token is not one of this mesh's; `mloc token USER` on a member prints one".into(),
            )
        };
        let (user, mac) = token.trim().rsplit_once('.').ok_or_else(refused)?;
        let mac = hex::decode(mac).map_err(|_| refused())?;
        self.mac(user).verify_slice(&mac).map_err(|_| refused())?;
        Ok(Caller { user: user.to_owned() })
    }

    /// Whether a text has the form of a token, right or wrong or damaged.
    pub fn looks_like_one(token: &str) -> bool {
        let mac = |mac: &str| mac.len() >= 32 && mac.bytes().all(|digit| digit.is_ascii_hexdigit());
        token.rsplit_once('.').is_some_and(|(user, tail)| !user.is_empty() && mac(tail))
    }

    fn mac(&self, user: &str) -> Hmac<Sha256> {
        // HMAC pads its key with zeros to a block: done here, the constructor cannot fail.
        let mut block = [0u8; 64];
        block[..32].copy_from_slice(&self.key);
        let mac = <Hmac<Sha256> as KeyInit>::new(&block.into());
        mac.chain_update(b"mloc-user/1").chain_update(user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_names_its_user_and_no_other() {
        let tokens = UserTokens::new([7; 32]);
        let token = tokens.issue("john.doe");
        assert_eq!(tokens.check(&token).unwrap().user, "john.doe");
        let forged = token.replacen("john.doe", "admin", 1);
        assert!(tokens.check(&forged).is_err());
        assert!(UserTokens::new([8; 32]).check(&token).is_err());
        assert!(tokens.check(&token[..token.len() - 2]).is_err());
        assert!(UserTokens::looks_like_one(&token) && UserTokens::looks_like_one(&forged));
        assert!(UserTokens::looks_like_one(&token[..token.len() - 1]), "a damaged one is nobody's placeholder");
        for key in ["none", "sk-proj-1.2", "EMPTY", ".00"] {
            assert!(!UserTokens::looks_like_one(key), "{key}");
        }
        for junk in ["", ".", "admin", "admin.", "admin.zz"] {
            assert!(tokens.check(junk).is_err(), "{junk}");
        }
    }

    #[test]
    fn only_the_owner_and_the_admin_act_for_an_owner() {
        let john = Caller { user: "john".into() };
        assert!(john.may_act_for("john").is_ok());
        assert!(john.may_act_for("mary").is_err());
        assert!(Caller::admin().may_act_for("mary").is_ok());
    }
}
