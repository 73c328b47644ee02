package pfn

import "memfs/mm/offheap"

// Resizing. The arena and the entries are mapped for the most frames that there can ever be; frames 1..limit are the
// memory. To shrink it, the limit falls first: from then on no frame beyond it is handed out, and those that become free
// retire. Shrink then walks from the top down and moves the pages that are left beyond the limit into frames below it,
// which it takes as every fault does, so that what has to leave memory leaves it in the usual order. So what is left is
// whole at the low end, and both the frames' memory and that of their entries go back to the host.
//
// One caller at a time resizes; faults, writers and trimmers go on meanwhile.

// SetLimit says how many frames the memory is to have. Those beyond retire one by one; those that it grew by are Retired
// until Enlist takes them in. n is at most Most.
// +checklocks:d.mu
func (d *Database) SetLimit(n uint64) {
	d.limit = Frame(n)
	if d.limit > d.top {
		d.retired += uint64(d.limit - d.top)
		d.top = d.limit
	}
}

// NextRetired returns the first run of Retired frames from f on, at most n long, that are to be used; 0 if there is none.
// +checklocks:d.mu
func (d *Database) NextRetired(f Frame, n int) (first Frame, got int) {
	for f <= d.limit && d.entries[f].state != Retired {
		f++
	}
	for got < n && f+Frame(got) <= d.limit && d.entries[f+Frame(got)].state == Retired {
		got++
	}
	if got == 0 {
		return 0, 0
	}
	return f, got
}

// Enlist makes a run of NextRetired, whose memory is zeros, part of the memory.
// +checklocks:d.mu
func (d *Database) Enlist(f Frame, n int) {
	for end := f + Frame(n); f < end; f++ {
		d.apply(f, Enlist)
	}
}

// Shrinking is a walk over the frames beyond the limit. The zero value begins at the top.
type Shrinking struct {
	at    Frame // next frame to look at; those beyond were looked at
	Moved []Frame
}

// Shrink takes up to n frames beyond the limit out of use, from the top down and then over again: free ones at once, the
// others by moving their page to a frame below the limit, as long as more than reserve stay available. Frames that are
// pinned or under I/O are passed over. ended says that every frame was looked at once more; short that a page found no
// frame to go to. w.Moved is the frames that took over for record frames: their memory is the caller's to give back to
// the host.
// +checklocks:d.mu
func (d *Database) Shrink(w *Shrinking, n int, reserve uint64) (ended, short bool) {
	w.Moved = w.Moved[:0]
	if w.at == 0 || w.at > d.top {
		w.at = d.top
	}
	for range n {
		if w.at <= d.limit {
			w.at = 0
			return true, false
		}
		if !d.evacuate(w, w.at, reserve) {
			return false, true
		}
		w.at--
	}
	return false, false
}

// evacuate retires f if that can be done; false if its page found no frame to go to.
// +checklocks:d.mu
func (d *Database) evacuate(w *Shrinking, f Frame, reserve uint64) bool {
	e := &d.entries[f]
	switch {
	case e.state == Zeroed || e.state == Free:
		d.apply(f, Retire)
		return true
	case e.state == Retired || e.state == Bad || e.state == Transition || e.refs > 0:
		return true
	}
	was := e.state
	to, _ := d.Alloc(0, 0, 0, false, reserve)
	if e.state != was { // the next frame to be used was this one
		if to != 0 {
			d.Release(to)
			d.Unpin(to)
		}
		return true
	}
	if to == 0 {
		return false
	}
	if e.flags&record != 0 {
		w.Moved = append(w.Moved, to)
	}
	d.relocate(f, to)
	return true
}

// relocate moves the page of f to another frame, fresh from Alloc, and frees f. The page stays what it is, and where it is
// on its list.
// +checklocks:d.mu
func (d *Database) relocate(f, to Frame) {
	from, e := &d.entries[f], &d.entries[to]
	was := *e
	*e = *from
	e.state, e.next, e.prev, e.refs = was.state, was.next, was.prev, 0
	if from.flags&record != 0 {
		d.remove(&d.records, f)
		d.apply(to, MakeValid)
		d.push(&d.records, to)
		d.toFree(f)
		return
	}
	copy(d.Bytes(to), d.Bytes(f))
	switch from.state {
	case Active:
		d.apply(to, MakeValid)
	case Standby:
		d.apply(to, SettleClean)
	case Modified:
		d.apply(to, SettleDirty)
	case ModifiedNoWrite:
		d.apply(to, MakeValid)
		d.apply(to, TrimNoWrite)
	}
	if l := d.listOf(from); l != nil {
		d.moveBefore(l, to, f)
	}
	d.moved(from.owner, to)
	d.toFree(f)
}

// Lower lets go of Retired frames at the top, n at most. It returns the run of them; got is 0 if there is none.
// +checklocks:d.mu
func (d *Database) Lower(n int) (first Frame, got int) {
	for got < n && d.top > d.limit && d.entries[d.top].state == Retired {
		d.top--
		d.retired--
		got++
	}
	d.hand = min(d.hand, max(d.top, 1))
	return d.top + 1, got
}

// Drop gives a run of Lower back to the host: the frames' memory, and that of their entries as far as they fill pages.
func (d *Database) Drop(f Frame, n int) {
	if b := d.Run(f, n); offheap.Drop(b) != nil {
		clear(b)
	}
	clear(d.entries[f : f+Frame(n)])
	const mask = PageSize - 1
	from := (int(f)*int(EntrySize) + mask) &^ mask
	to := (int(f) + n) * int(EntrySize)
	// The page that the run ends in holds frames that went before, if any: all zeros.
	if to = min((to+mask)&^mask, len(d.mem)&^mask); from < to {
		_ = offheap.Drop(d.mem[from:to])
	}
}
