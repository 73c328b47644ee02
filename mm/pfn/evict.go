package pfn

// Evict takes a frame on a standby list away from its page, whose bytes are in its store, and frees it. It says whether the
// page was there; one that was offered is not lost by it.
// +checklocks:d.mu
func (d *Database) Evict(f Frame, why Departure) bool {
	e := &d.entries[f]
	if e.state != Standby || e.flags&offer != 0 {
		return false
	}
	d.giveBack(e, why)
	d.toFree(f)
	return true
}
