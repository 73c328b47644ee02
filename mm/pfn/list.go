package pfn

// Frame is a frame number. Frames count from 1, so that 0 can mean none.
type Frame uint32

// list is a first-in-first-out queue of frames in one state, linked through their entries.
//
// INVARIANT: count frames are reachable from head by next, and from tail by prev.
type list struct {
	head, tail Frame
	count      uint64
}

// push adds f at the tail. Preconditions: f is on no list.
// +checklocks:d.mu
func (d *Database) push(l *list, f Frame) {
	e := &d.entries[f]
	e.when = d.clock
	d.clock++
	e.prev, e.next = l.tail, 0
	if l.tail != 0 {
		d.entries[l.tail].next = f
	} else {
		l.head = f
	}
	l.tail = f
	l.count++
}

// remove takes f off l. Preconditions: f is on l.
// +checklocksread:d.mu
func (d *Database) remove(l *list, f Frame) {
	e := &d.entries[f]
	if e.prev != 0 {
		d.entries[e.prev].next = e.next
	} else {
		l.head = e.next
	}
	if e.next != 0 {
		d.entries[e.next].prev = e.prev
	} else {
		l.tail = e.prev
	}
	e.prev, e.next = 0, 0
	l.count--
}

// moveBefore takes f from its place on l to the one before another frame on it, as old as that.
// +checklocks:d.mu
func (d *Database) moveBefore(l *list, f, other Frame) {
	d.remove(l, f)
	e, o := &d.entries[f], &d.entries[other]
	e.prev, e.next, e.when = o.prev, other, o.when
	if o.prev != 0 {
		d.entries[o.prev].next = f
	} else {
		l.head = f
	}
	o.prev = f
	l.count++
}

// listOf returns the list that frames of e's state wait on, nil for Active, Transition and Retired, which have none.
// +checklocksread:d.mu
func (d *Database) listOf(e *entry) *list {
	switch e.state {
	case Zeroed:
		return &d.zeroed
	case Free:
		return &d.free
	case Standby:
		return &d.parts[e.part].standby[e.priority]
	case Modified:
		return &d.parts[e.part].modified
	case ModifiedNoWrite:
		return &d.parts[e.part].noWrite
	case Bad:
		return &d.bad
	}
	return nil
}
