package pfn

import "fmt"

// Check proves the database's invariants and returns every one that does not hold: lists and Active add up to all
// frames; a frame is on the list of its state and its part, once; lists are in the order in which frames came to them; flags
// fit the state. It walks every frame under the PFN lock.
// +checklocks:d.mu
func (d *Database) Check() []error {
	c := checking{onList: make([]bool, len(d.entries))}
	d.checkList(&c, &d.zeroed, Zeroed, anyPart, anyPriority)
	d.checkList(&c, &d.free, Free, anyPart, anyPriority)
	d.checkList(&c, &d.bad, Bad, anyPart, anyPriority)
	for i := range d.parts {
		d.checkPart(&c, i)
	}
	d.checkRecords(&c)
	for f := Frame(1); f <= d.top; f++ {
		d.checkFrame(&c, f)
	}
	var active uint64
	for i, n := range c.active {
		if n != d.parts[i].active {
			c.bad("part %d: counted %d active, kept %d", i, n, d.parts[i].active)
		}
		active += n
	}
	if c.transition != d.transition || c.records != d.records.count || c.retired != d.retired {
		c.bad("counted %d transition, %d record frames, %d retired; kept %d, %d, %d",
			c.transition, c.records, c.retired, d.transition, d.records.count, d.retired)
	}
	if sum := c.listed + active + c.transition; sum != d.Frames() {
		c.bad("lists, Active and Transition add up to %d of %d frames", sum, d.Frames())
	}
	if d.limit > d.top || int(d.top) >= len(d.entries) {
		c.bad("limit %d, top %d: out of order, of %d frames at most", d.limit, d.top, d.Most())
	}
	return c.errs
}

// +checklocks:d.mu
func (d *Database) checkPart(c *checking, part int) {
	p := &d.parts[part]
	d.checkList(c, &p.modified, Modified, part, anyPriority)
	d.checkList(c, &p.noWrite, ModifiedNoWrite, part, anyPriority)
	before := c.listed
	for i := range p.standby {
		d.checkList(c, &p.standby[i], Standby, part, i)
	}
	if n := c.listed - before; n != p.standing {
		c.bad("part %d: %d frames on standby, counted %d", part, n, p.standing)
	}
}

// checkRecords walks the frames that records took over, which are Active and so on no list that checkList is for.
// +checklocks:d.mu
func (d *Database) checkRecords(c *checking) {
	var n uint64
	for f := d.records.head; f != 0 && n <= d.records.count; f = d.entries[f].next {
		if e := &d.entries[f]; e.state != Active || e.flags&record == 0 {
			c.bad("frame %d: %v among the records' frames", f, e.state)
		}
		n++
	}
	if n != d.records.count {
		c.bad("the records' frames are %d, counted %d", n, d.records.count)
	}
}

// anyPart and anyPriority say that the frames of a list may have any.
const (
	anyPart     = -1
	anyPriority = -1
)

// checking is one Check under way: what was found so far.
type checking struct {
	errs                         []error
	onList                       []bool // by frame
	listed                       uint64
	active                       [Parts]uint64
	transition, records, retired uint64
}

func (c *checking) bad(format string, args ...any) {
	c.errs = append(c.errs, fmt.Errorf(format, args...))
}

// +checklocks:d.mu
func (d *Database) checkList(c *checking, l *list, s State, part, prio int) {
	var n, when uint64
	prev := Frame(0)
	for f := l.head; f != 0; f = d.entries[f].next {
		e := &d.entries[f]
		switch {
		case c.onList[f]:
			c.bad("frame %d: on a list twice", f)
			return
		case e.state != s:
			c.bad("frame %d: on list %v in state %v", f, s, e.state)
		case part != anyPart && int(e.part) != part:
			c.bad("frame %d: %v on a list of part %d, but of part %d", f, s, part, e.part)
		case prio != anyPriority && int(e.priority) != prio:
			c.bad("frame %d: on standby list %d with priority %d", f, prio, e.priority)
		case e.prev != prev:
			c.bad("frame %d: back link is %d, want %d", f, e.prev, prev)
		case e.when < when || e.when >= d.clock:
			c.bad("frame %d: on list %v out of order", f, s)
		}
		c.onList[f] = true
		c.listed++
		prev, when = f, e.when
		n++
	}
	if l.tail != prev || n != l.count {
		c.bad("list %v: %d frames ending in %d, counted %d ending in %d", s, n, prev, l.count, l.tail)
	}
}

// +checklocks:d.mu
func (d *Database) checkFrame(c *checking, f Frame) {
	e := &d.entries[f]
	if e.part >= Parts {
		c.bad("frame %d: of part %d", f, e.part)
		return
	}
	switch e.state {
	case Active:
		c.active[e.part]++
		if e.flags&record != 0 {
			c.records++
		} else if e.owner == 0 {
			c.bad("frame %d: Active without an owner", f)
		}
	case Transition:
		c.transition++
	case Retired:
		c.retired++
		if f <= d.limit {
			c.bad("frame %d: retired, but one of the %d to be used", f, d.limit)
		}
		if e.owner != 0 || e.original != 0 || e.refs != 0 || e.flags != 0 {
			c.bad("frame %d: retired, but not empty", f)
		}
	default:
		if !c.onList[f] {
			c.bad("frame %d: in state %v but on no list", f, e.state)
		}
		if e.refs != 0 {
			c.bad("frame %d: on list %v with %d references", f, e.state, e.refs)
		}
	}
	switch {
	case e.shares > 0 && e.state != Active:
		c.bad("frame %d: %v, but %d processes map it", f, e.state, e.shares)
	case (e.state == Standby || e.state == Modified || e.state == ModifiedNoWrite) && e.owner == 0:
		c.bad("frame %d: %v without an owner", f, e.state)
	case e.flags&offer != 0 && (e.state != Standby || e.flags != offer || e.original != 0):
		c.bad("frame %d: offered, but %v, flags %x, original %d", f, e.state, e.flags, e.original)
	case e.flags&offer != 0:
	case e.state == Standby && (e.flags&dirty != 0 || e.original == 0):
		c.bad("frame %d: on standby, but no store has its bytes", f)
	case (e.state == Modified || e.state == ModifiedNoWrite) && e.flags&dirty == 0:
		c.bad("frame %d: %v, but not dirty", f, e.state)
	case e.flags&dirty != 0 && e.original != 0:
		c.bad("frame %d: dirty, but keeps a store location", f)
	}
}
