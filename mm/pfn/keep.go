package pfn

// SetPriority says in which of the standby lists f's page waits: 0 is repurposed first, Priorities−1 last.
// +checklocks:d.mu
func (d *Database) SetPriority(f Frame, priority uint8) {
	e := &d.entries[f]
	if e.priority == priority {
		return
	}
	if e.state != Standby {
		e.priority = priority
		return
	}
	d.remove(d.listOf(e), f)
	e.priority = priority
	d.push(d.listOf(e), f)
}

// SetOwner says that f's page is another owner's from now on.
// +checklocks:d.mu
func (d *Database) SetOwner(f Frame, owner uint64) { d.entries[f].owner = owner }

// Keep has f's page stay in memory: it is not written out, and its frame is not taken. With locked it is made valid and
// stays in its working set besides (VirtualLock). No store has its bytes any more: the result is the location that had (0
// if none did), which is now the caller's to free.
// +checklocks:d.mu
func (d *Database) Keep(f Frame, locked bool) (stale uint64) {
	e := &d.entries[f]
	stale = d.SetDirty(f)
	e.flags = e.flags&^(ahead|lock) | keep
	if locked {
		e.flags |= lock
	}
	switch {
	case locked && e.state != Active:
		d.apply(f, MakeValid)
	case e.state == Standby || e.state == Modified:
		d.apply(f, MakeValid)
		d.apply(f, TrimNoWrite)
	}
	return stale
}

// Unkeep undoes Keep. A page in a working set stays there until it is trimmed.
// +checklocks:d.mu
func (d *Database) Unkeep(f Frame) {
	e := &d.entries[f]
	e.flags &^= keep | lock
	if e.state == ModifiedNoWrite {
		d.apply(f, MakeValid)
		d.apply(f, TrimDirty)
	}
}

// Locked reports whether f's page must stay in its working set.
// +checklocks:d.mu
func (d *Database) Locked(f Frame) bool { return d.entries[f].flags&lock != 0 }
