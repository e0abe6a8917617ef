//! A changed secret, as the store makes it of a service that reads it: the wanted revision again, beside `scale` and `stop`.

use std::sync::Arc;

use super::{Guest, World, service_name};
use crate::model::RevisionState;

impl World {
    /// The wanted revision of `name` again, as a further one whose guest behaves as `guest` does with the new value.
    pub fn change_secret(&mut self, name: &str, guest: Guest) -> &mut Self {
        let (name, at) = (service_name(name), self.wall());
        let Some(service) = self.desired.services.get_mut(&name) else {
            return self;
        };
        let record = &mut service.record;
        let Some(wanted) = service.revisions.get_mut(&record.wanted).filter(|_| !record.deleting) else {
            return self;
        };
        let mut renewed = (**wanted).clone();
        if wanted.state == RevisionState::Pending {
            Arc::make_mut(wanted).state = RevisionState::Superseded { at };
        }
        let number = record.next_revision;
        if record.scaled_under.is_some_and(|newest| newest >= record.wanted) {
            record.scaled_under = Some(number);
        }
        record.next_revision.0 += 1;
        record.wanted = number;
        (renewed.number, renewed.created_at) = (number, at);
        (renewed.cause, renewed.state) = ("secret db changed".into(), RevisionState::Pending);
        service.revisions.insert(number, Arc::new(renewed));
        self.guests.insert((name, number), guest);
        self.settle()
    }
}
