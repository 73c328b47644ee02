package process

import (
	"errors"
	"fmt"
	"slices"
)

// Check proves the processes' own invariants at this moment and returns every one that does not hold:
//
//   - allocations ascend, lie within the address space and do not share a 64 KiB slot, save for parts of placeholders;
//   - the runs of an allocation ascend from its first page, lie within it, and neighbours differ;
//   - what is committed adds up to what the memory manager has committed for the process;
//   - a reserved page has neither a protection nor an offer;
//   - a view has its section's pages behind it, and space for its copies.
//
// It waits for a moment at which no call changes anything, one process at a time, and lets nobody wait. The pages themselves are mm.System.Check's business.
func (m *Machine) Check() (errs []error) {
	for _, p := range m.Processes() {
		for _, err := range p.prove() {
			errs = append(errs, fmt.Errorf("process %d: %w", p.id, err))
		}
	}
	return errs
}

func (p *Process) prove() (errs []error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for slices.ContainsFunc(p.holds, func(h *hold) bool { return h.granted && h.exclusive }) {
		p.turn.Wait()
	}
	if p.ended {
		return nil
	}
	var committed, virtual uint64
	var before *vad
	for _, v := range p.vads {
		n, err := v.check()
		errs = append(errs, err...)
		if !v.system {
			committed += n
		}
		virtual += v.pages()
		if v.base() < p.low || v.last > p.high>>pageShift {
			errs = append(errs, fmt.Errorf("allocation %#x: outside the address space", v.base()))
		}
		if before != nil && (before.last >= v.first || before.last|(slotPages-1) >= v.first && !v.pieceOf(before)) {
			errs = append(errs, fmt.Errorf("allocation %#x: shares a slot with %#x", v.base(), before.base()))
		}
		before = v
	}
	if got := p.space.Committed(); got != committed {
		errs = append(errs, fmt.Errorf("%d pages committed, the memory manager has %d", committed, got))
	}
	if virtual != p.virtual {
		errs = append(errs, fmt.Errorf("%d pages in allocations, counted %d", virtual, p.virtual))
	}
	return errs
}

// pieceOf says whether both may have been one placeholder.
func (v *vad) pieceOf(o *vad) bool {
	return (v.placeholder || v.replaced) && (o.placeholder || o.replaced)
}

// check looks at one allocation, and counts its committed pages.
func (v *vad) check() (committed uint64, errs []error) {
	bad := func(what string) { errs = append(errs, fmt.Errorf("allocation %#x: %s", v.base(), what)) }
	if v.last < v.first || len(v.runs) == 0 || v.runs[0].first != v.first {
		return 0, []error{errors.New("an allocation without pages, or whose runs do not begin with it")}
	}
	if v.view != nil {
		next := v.first
		for _, q := range v.view.pieces {
			if q.first != next || q.last < q.first {
				bad("pieces of the view out of order")
			}
			next = q.last + 1
		}
		if next != v.last+1 {
			bad("pages of the view that show nothing")
		}
	}
	for i, r := range v.runs {
		switch {
		case r.first > v.last || i > 0 && r.first <= v.runs[i-1].first:
			bad("runs out of order")
		case i > 0 && r.attr == v.runs[i-1].attr:
			bad("neighbouring runs are alike")
		}
		if v.view == nil && r.copied || v.view != nil && (!r.committed || r.offered) {
			bad("pages that a view cannot have, or only a view can")
		}
		if r.committed && v.view != nil {
			if r.promised() {
				committed += v.end(i) - r.first + 1
			}
		} else if r.committed {
			committed += v.end(i) - r.first + 1
		} else if r.attr != (attr{}) {
			bad("reserved pages with a protection")
		}
	}
	return committed, errs
}
