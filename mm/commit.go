package mm

import (
	"errors"
	"slices"
	"sync"
	"time"
)

// errGrow says that a charge needs a page file to grow first, which is I/O: the caller drops its locks, calls grow and
// tries again. It never leaves the package.
var errGrow = errors.New("mm: a page file must grow first")

// growStep is what a page file grows by at least, in pages: 32 MiB.
const growStep = 8192

// commit is the promise book: pages charged against frames and page files (Windows Internals 7 ch. 5, "Commit charge and
// the system commit limit"). Every page that must never be lost is charged before it is accepted: file pages at the
// first write or at fallocate, the manager's records by the page. A charge within what frames and the page files' present
// sizes can hold never fails later.
type commit struct {
	files *pageFiles

	mu sync.Mutex
	// +checklocks:mu
	charged uint64
	// +checklocks:mu
	peak uint64
	// +checklocks:mu
	attached uint64 // of charged, what words and records hold; the rest is on its way there
	// +checklocks:mu
	records uint64 // of charged, what the manager's records take; the rest is what files hold
	// +checklocks:mu
	size uint64 // most pages that files may hold; 0 = no limit of their own
	// +checklocks:mu
	frames uint64 // frames that may be promised
	// +checklocks:mu
	grown uint64 // slots that exist in all page files
	// +checklocks:mu
	refusals uint64

	// growing lets one caller at a time extend a page file; held across that I/O by design, so nothing else takes it.
	growing chan struct{}
}

// tryCharge charges n pages of files if what exists can hold them; errGrow if a page file must grow first,
// StatusCommitmentLimit if none can or files hold as much as they may.
func (c *commit) tryCharge(n uint64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n > 0 && c.size > 0 && c.charged-c.records+n > c.size {
		c.refusals++
		return StatusCommitmentLimit
	}
	return c.tryLocked(n)
}

// tryRecords is tryCharge for n pages of records, which are attached at once.
func (c *commit) tryRecords(n uint64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.tryLocked(n); err != nil {
		return err
	}
	c.records += n
	c.attached += n
	return nil
}

// unchargeRecords gives n pages of records back.
func (c *commit) unchargeRecords(n uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.charged -= n
	c.records -= n
	c.attached -= n
}

// +checklocks:c.mu
func (c *commit) tryLocked(n uint64) error {
	if c.charged+n <= c.frames+c.grown {
		c.charged += n
		c.peak = max(c.peak, c.charged)
		return nil
	}
	if c.charged+n <= c.frames+c.limitLocked() {
		return errGrow
	}
	c.refusals++
	return StatusCommitmentLimit
}

// limitLocked is how many slots all page files can have.
// +checklocks:c.mu
func (c *commit) limitLocked() uint64 {
	var n uint64
	for _, f := range c.files.inUse() {
		n += f.limit()
	}
	return n
}

// uncharge gives n charged pages back. attached says that they had been attached.
func (c *commit) uncharge(n uint64, attached bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.charged -= n
	if attached {
		c.attached -= n
	}
}

// attach notes that n charged pages now belong to words or records.
func (c *commit) attach(n uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.attached += n
}

// grow extends a page file so that n more pages can be charged. When it returns nil the charge is worth another try: others
// may have taken what grew. It does I/O: no lock may be held.
func (c *commit) grow(n uint64) error {
	c.growing <- struct{}{}
	defer func() { <-c.growing }()
	missing := c.missing(n)
	if missing == 0 {
		return nil
	}
	if c.growAny(missing) || c.missing(n) == 0 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refusals++
	return StatusCommitmentLimit
}

// missing is how many slots must be added for n more pages to be charged.
func (c *commit) missing(n uint64) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	have := c.frames + c.grown
	return max(c.charged+n, have) - have
}

// detach notes that n attached pages no longer belong to words; they stay charged.
func (c *commit) detach(n uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.attached -= n
}

// growFile extends one page file by n slots if it can: one that is being removed cannot. Preconditions: the caller is the one
// that is growing.
func (c *commit) growFile(f *pageFile, n uint64) bool {
	if !c.counts(f) {
		return false
	}
	by, err := f.grow(n)
	if err != nil || by == 0 {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.grown += by
	return true
}

// counts says whether a page file's slots are counted. Preconditions: the caller is the one that is growing.
func (c *commit) counts(f *pageFile) bool { return slices.Contains(c.files.inUse(), f) }

// growAny extends the page files of the highest priority that can grow, all of them alike, by n slots in all; false if none
// can. Preconditions: the caller is the one that is growing.
func (c *commit) growAny(n uint64) bool {
	for _, group := range c.files.order() {
		if c.growGroup(group, max(n, growStep)) {
			return true
		}
	}
	return false
}

// growGroup extends page files by n slots in all, or more; false if none can grow.
func (c *commit) growGroup(group []*pageFile, n uint64) (grown bool) {
	each := max(n/uint64(len(group)), min(n, growStep))
	for _, f := range group {
		if c.growFile(f, each) {
			grown = true
		}
	}
	return grown
}

// extend gives a writer, which has found no free slot in page files of one priority, more of them; false if none can grow.
// It does I/O: no lock may be held.
func (c *commit) extend(group []*pageFile) bool {
	if !slices.ContainsFunc(group, (*pageFile).canGrow) {
		return false
	}
	c.growing <- struct{}{}
	defer func() { <-c.growing }()
	return slices.ContainsFunc(group, (*pageFile).hasFree) || c.growGroup(group, growStep)
}

// shrink gives the disk what a page file does not need: neither for what it holds nor for what is promised. It does I/O:
// no lock may be held.
func (c *commit) shrink(f *pageFile) {
	c.growing <- struct{}{}
	defer func() { <-c.growing }()
	if !c.counts(f) {
		return // it has been removed meanwhile
	}
	for _, r := range c.takeBack(f) {
		_ = f.store.Discard(r.first, r.n) // if it fails the disk has its space back later
	}
}

// takeBack takes slots that a page file does not need out of use.
func (c *commit) takeBack(f *pageFile) []slotRun {
	c.mu.Lock()
	defer c.mu.Unlock()
	have := c.frames + c.grown
	runs := f.sendAway(min(f.surplus(), have-min(have, c.charged)))
	for _, r := range runs {
		c.grown -= r.n
	}
	return runs
}

// addFile counts a page file in, whose slots can be promised from now on.
func (c *commit) addFile(f *pageFile) {
	c.growing <- struct{}{}
	defer func() { <-c.growing }()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.files.setInUse(append(c.files.inUse(), f))
	c.grown += f.info().Size
}

// dropFile counts a page file out, and lets frames be promised instead, if the others can hold what is promised; else
// nothing has changed, and short says how many pages too many are promised. It does I/O: no lock may be held.
func (c *commit) dropFile(f *pageFile, frames uint64) (short uint64) {
	c.growing <- struct{}{}
	defer func() { <-c.growing }()
	was := c.files.inUse()
	c.files.setInUse(slices.DeleteFunc(slices.Clone(was), func(o *pageFile) bool { return o == f }))
	if charged, slots := c.total(); charged > frames+slots {
		c.files.setInUse(was)
		return charged - frames - slots
	}
	for {
		missing := c.tryDrop(f, frames)
		if missing == 0 {
			return 0
		}
		if !c.growAny(missing) {
			c.files.setInUse(was)
			return missing
		}
	}
}

func (c *commit) tryDrop(f *pageFile, frames uint64) (missing uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	size := f.info().Size
	if have := frames + c.grown - size; c.charged > have {
		return c.charged - have
	}
	c.frames, c.grown = frames, c.grown-size
	return 0
}

// charge is tryCharge that grows page files as needed. It may do I/O: no lock may be held.
func (c *commit) charge(n uint64) error {
	for {
		err := c.tryCharge(n)
		if !errors.Is(err, errGrow) {
			return err
		}
		if err := c.grow(n); err != nil {
			return err
		}
	}
}

// setFrames changes how many frames may be promised. If what is charged needs it, page files grow first; false if they
// cannot grow that far, and nothing has changed. It does I/O: no lock may be held.
func (c *commit) setFrames(n uint64) bool {
	c.growing <- struct{}{}
	defer func() { <-c.growing }()
	for {
		missing := c.trySetFrames(n)
		if missing == 0 {
			return true
		}
		if !c.growAny(missing) {
			return false
		}
	}
}

// trySetFrames is setFrames as far as page files need not grow; otherwise it says by how many slots they must.
func (c *commit) trySetFrames(n uint64) (missing uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if have := n + c.grown; c.charged > have {
		return c.charged - have
	}
	c.frames = n
	return 0
}

// setSize changes how much files may hold, in pages; 0 is no limit. If they hold more than that nothing changes, and it
// says how much they hold.
func (c *commit) setSize(n uint64) (held uint64, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	held = c.charged - c.records
	if n > 0 && held > n {
		return held, false
	}
	c.size = n
	return held, true
}

// total is what is charged, and how many slots all page files can have.
func (c *commit) total() (charged, slots uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.charged, c.limitLocked()
}

// retryGrowth is how long a page file that could not grow counts as full.
const retryGrowth = 5 * time.Second
