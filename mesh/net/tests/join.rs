//! Joining through a seed: who is let in, who is not, and why.

mod bench;

use std::collections::{BTreeMap, BTreeSet};

use bench::{endpoint, identity, token};
use mloc_mesh::{
    members::{MemberRow, MemberTable},
    names::MeshId,
    quic_transport::{JoinError, JoinRefusal, JoinRequest, LeaderHint, Welcome},
    token::JoinToken,
};

fn request(mesh: &MeshId) -> JoinRequest {
    JoinRequest {
        mesh: mesh.clone(),
        name: "edge-1".into(),
        version: "0.1.0".into(),
        addresses: vec![],
        founding: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_the_token_is_let_in_by_whoever_answers() {
    let token = token();
    let (seed, mut asked) = endpoint(1, &token, 1);
    let (joiner, _) = endpoint(2, &token, 1);
    let row = MemberRow { name: "edge-1".into(), addresses: vec![], revoked: false };
    let welcome = Welcome {
        leader: Some(LeaderHint { term: 4, node: identity(1).node().clone() }),
        members: MemberTable::new(token.mesh().clone(), 7, BTreeMap::from([(identity(2).node().clone(), row)])),
    };
    let answer = welcome.clone();
    let answering = tokio::spawn(async move {
        let ask = asked.recv().await.unwrap();
        assert_eq!((&ask.peer, ask.request.name.as_str()), (identity(2).node(), "edge-1"));
        ask.reply.send(Ok(answer)).unwrap();
    });
    let seed_address = seed.local_addr().unwrap().to_string();
    assert_eq!(joiner.ask_to_join(&seed_address, &request(token.mesh())).await.unwrap(), welcome);
    answering.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_have_reasons() {
    let ours = token();
    let (seed, asked) = endpoint(1, &ours, 1);
    let seed_address = seed.local_addr().unwrap().to_string();
    let refused = async |number: u8, token: JoinToken, request: JoinRequest| {
        let (joiner, _) = endpoint(number, &token, 1);
        joiner.ask_to_join(&seed_address, &request).await
    };

    let error = refused(2, token(), request(ours.mesh())).await.unwrap_err();
    assert!(matches!(&error, JoinError::Unreachable { reason, .. } if reason.contains("is of mesh")), "{error}");

    let error = refused(3, ours.clone(), request(&MeshId::new("another"))).await.unwrap_err();
    assert!(matches!(error, JoinError::Refused { refusal: JoinRefusal::OtherMesh { .. }, .. }));

    seed.set_revoked(BTreeSet::from([identity(4).node().clone()]));
    let error = refused(4, ours.clone(), request(ours.mesh())).await.unwrap_err();
    assert!(matches!(&error, JoinError::Refused { refusal: JoinRefusal::Revoked(_), .. }), "{error}");

    drop(asked);
    let error = refused(5, ours.clone(), request(ours.mesh())).await.unwrap_err();
    assert!(matches!(&error, JoinError::Refused { refusal, .. } if refusal.is_passing()), "{error}");

    let (stranger, _) = endpoint(6, &ours, 1);
    let error = stranger.ask_to_join("no-such-host.invalid:7946", &request(ours.mesh())).await.unwrap_err();
    assert!(matches!(error, JoinError::Unresolved { .. }), "{error}");
}
