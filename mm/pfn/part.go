package pfn

import "fmt"

// part is what one part of the PFN lock guards: the lists that a soft fault takes frames from, and how many are Active. No two
// share a cache line.
type part struct {
	standby  [Priorities]list
	modified list
	noWrite  list
	standing uint64 // frames on all of standby
	active   uint64
	_        [cacheLines]byte
}

// leave takes f, which is Standby, Modified or ModifiedNoWrite, off its part's list.
// +checklocksread:d.mu
func (d *Database) leave(f Frame) {
	e := &d.entries[f]
	d.remove(d.listOf(e), f)
	if e.state == Standby {
		d.parts[e.part].standing--
	}
}

// older says whether f came to its list before g, which may be none.
// +checklocks:d.mu
func (d *Database) older(f, g Frame) bool { return g == 0 || d.entries[f].when < d.entries[g].when }

// oldestStandby is the frame that has been longest on the lowest standby list from lowest to highest that is not empty, 0
// if all are.
// +checklocks:d.mu
func (d *Database) oldestStandby(lowest, highest int) (oldest Frame) {
	for i := range d.parts {
		p := &d.parts[i]
		if p.standing == 0 {
			continue
		}
		for prio := lowest; prio <= highest; prio++ {
			f := p.standby[prio].head
			if f == 0 {
				continue
			}
			if prio < highest || d.older(f, oldest) {
				oldest, highest = f, prio
			}
			break
		}
	}
	return oldest
}

// oldestModified is the frame that has been Modified longest, 0 if none is.
// +checklocks:d.mu
func (d *Database) oldestModified() (oldest Frame) {
	for i := range d.parts {
		if f := d.parts[i].modified.head; f != 0 && d.older(f, oldest) {
			oldest = f
		}
	}
	return oldest
}

// TouchPart pins f, and if it is in no working set makes it valid, with part p of the lock alone. ok is false, and nothing
// has changed, where that does not suffice: f is another part's, or is on its way. soft says that it was made valid, hit
// that this is the first touch of a page that was read ahead.
// +checklocksread:d.mu
func (d *Database) TouchPart(p Part, f Frame, priority uint8) (soft, hit, ok bool) {
	e := &d.entries[f]
	if e.part != p {
		return false, false, false
	}
	switch e.state {
	case Active:
	case Standby, Modified, ModifiedNoWrite:
		next := e.after(f, MakeValid)
		d.leave(f)
		e.state, e.why, e.priority = next, MakeValid, priority
		d.parts[p].active++
		soft, hit = true, e.flags&ahead != 0
		e.flags &^= ahead
		touched(e)
	default:
		return false, false, false
	}
	e.refs++
	return soft, hit, true
}

// UnpinPart is Unpin of those of frames for which part p of the lock suffices: they become 0, as those that are none were. It
// says whether all are.
// +checklocksread:d.mu
func (d *Database) UnpinPart(p Part, frames []Frame) (all bool) {
	all = true
	for i, f := range frames {
		e := &d.entries[f]
		switch {
		case f == 0:
		case e.part != p, e.refs == 1 && (e.state != Active || e.flags&deleting != 0):
			all = false
		case e.refs == 0:
			panic(fmt.Sprintf("pfn: frame %d: unpinned too often", f))
		default:
			e.refs--
			frames[i] = 0
		}
	}
	return all
}
