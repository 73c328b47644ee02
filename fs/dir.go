package fs

import "sort"

const (
	// Cookies of the entries that are not in the directory's list: where READDIR goes on after them.
	cookieDot    = 1
	cookieDotDot = 2
	cookieProc   = 3 // the control tree, in a root that lists it
	firstCookie  = 4

	indexFrom   = 16 // names from which on a directory has an index
	compactFrom = 32 // entries from which on a directory is compacted
)

// entry is one name of a node.
type entry struct {
	name   string
	node   *node // nil once the name is gone
	parent *node
	cookie uint64 // its place in the order of the directory
}

// recordBytes is what the entry is charged to the budget.
func (e *entry) recordBytes() int { return nameRecord(e.name) }

func nameRecord(name string) int { return entryBytes + len(name) }

// directory is the names of one directory, in the order in which they were made. Each has a cookie greater than all
// before it, which never changes: a READDIR finds its place again whatever came and went. The names that went stay in the
// list, empty, until they are half of it.
//
// Everything in it is guarded by fileSystem.tree.
type directory struct {
	order   []*entry          // ascending cookies, entries without a node among them
	index   map[string]*entry // by name; nil in a small directory
	dead    int               // entries of order without a node
	last    uint64            // cookie given out last
	removed bool              // by rmdir: there is no new name in it
}

func (d *directory) len() int { return len(d.order) - d.dead }

// find is the entry of a name, or nil.
func (d *directory) find(name string) *entry {
	if d.index != nil {
		return d.index[name]
	}
	for _, e := range d.order {
		if e.node != nil && e.name == name {
			return e
		}
	}
	return nil
}

// add appends an entry for a name that is not there.
func (d *directory) add(name string, parent, n *node) *entry {
	d.last = max(d.last+1, firstCookie)
	e := &entry{name: name, node: n, parent: parent, cookie: d.last}
	d.order = append(d.order, e)
	switch {
	case d.index != nil:
		d.index[name] = e
	case d.len() >= indexFrom:
		d.makeIndex()
	}
	return e
}

// remove takes an entry out.
func (d *directory) remove(e *entry) {
	if d.index != nil {
		delete(d.index, e.name)
	}
	e.node, e.name = nil, ""
	d.dead++
	if len(d.order) >= compactFrom && d.dead > len(d.order)/2 {
		d.compact()
	}
}

// compact drops the empty entries. The cookies of the others stay.
func (d *directory) compact() {
	live := make([]*entry, 0, d.len())
	for _, e := range d.order {
		if e.node != nil {
			live = append(live, e)
		}
	}
	d.order, d.dead = live, 0
	d.index = nil
	if d.len() >= indexFrom {
		d.makeIndex()
	}
}

func (d *directory) makeIndex() {
	d.index = make(map[string]*entry, d.len())
	for _, e := range d.order {
		if e.node != nil {
			d.index[e.name] = e
		}
	}
}

// after is the entries behind a cookie, some of them without a node.
func (d *directory) after(cookie uint64) []*entry {
	i := sort.Search(len(d.order), func(i int) bool { return d.order[i].cookie > cookie })
	return d.order[i:]
}
