package pfn

// Offer says that f's page may be lost when its frame is wanted: it waits on the standby list of the priority, though no
// store has it. offered is false if the page is in use or must stay; stale is the location that had a copy (0 if none did),
// now the caller's to free. Restore is told of a page that is lost by an original of 0.
// +checklocks:d.mu
func (d *Database) Offer(f Frame, priority uint8) (stale uint64, offered bool) {
	e := &d.entries[f]
	if e.refs > 0 || e.flags&^(dirty|ahead) != 0 || e.state != Standby && e.state != Modified {
		return 0, false
	}
	stale = e.original
	d.apply(f, MakeValid)
	e.flags, e.original = offer, 0
	e.priority = priority
	d.apply(f, TrimClean)
	return stale, true
}

// Reclaim undoes Offer: the page is Modified from then on. It says whether the page was offered.
// +checklocks:d.mu
func (d *Database) Reclaim(f Frame) bool {
	e := &d.entries[f]
	if e.flags&offer == 0 {
		return false
	}
	touched(e)
	if e.state == Standby {
		d.apply(f, MakeValid)
		d.apply(f, TrimDirty)
	}
	return true
}

// touched ends the offer of a page that somebody uses: it is dirty, for no store has it. The lock of its part is held.
func touched(e *entry) {
	if e.flags&offer != 0 {
		e.flags = e.flags&^offer | dirty
	}
}
