package mm

import "memfs/mm/pfn"

// The host kernel also caches pages that are no file's: real programs map the address spaces of processes (package process),
// which see to their invalidation themselves. Here they are only counted, for they are a part of the host's share.

// AddHostPages notes that the host may hold n more pages of processes, or with n < 0 fewer.
func (s *System) AddHostPages(n int) {
	s.pfn.Lock()
	s.cache.foreign += uint64(n)
	s.noRoom()
	over := n > 0 && s.hostPages()+s.cache.leaving+s.cache.foreign > s.cache.limit
	s.pfn.Unlock()
	if over {
		s.trimmer.kick()
	}
}

// HostPagesOver is by how many pages the host holds more of processes than half of its share; the rest is the files'.
func (s *System) HostPagesOver() int64 {
	s.pfn.Lock()
	defer s.pfn.Unlock()
	return int64(s.cache.foreign) - int64(s.cache.limit/2)
}

// OnTrim has f called for pages that leave the working set: the first page of a view, and one bit a page from there on. It is
// called under the PFN lock and calls nothing of the memory manager's.
func (p *Space) OnTrim(f func(base, mask uint64)) { p.trimmed.Store(&f) }

// SetPriority sets the standby list in which the pages wait when they leave the working set, 0–7, of those that there are and
// of those that come. StatusInvalidParameter: there is no such list.
func (p *Space) SetPriority(priority uint8) error {
	if priority >= pfn.Priorities {
		return StatusInvalidParameter
	}
	g, s := p.seg, p.seg.sys
	g.mu.Lock()
	g.rule.Priority = priority
	g.mu.Unlock()
	p.seg.eachView(0, MaxSize>>PageShift, func(l *leaf, _ uint64) {
		for _, w := range s.rec.slice(l) {
			if w.hasFrame() {
				s.setPriority(w.frame(), priority)
			}
		}
	})
	return nil
}

// setPriority is SetPriority of a frame for closures that run under the PFN lock, which the analyser cannot see.
//
// +checklocksignore
func (s *System) setPriority(f pfn.Frame, priority uint8) { s.pfn.SetPriority(f, priority) }

// Priority is what SetPriority has set.
func (p *Space) Priority() uint8 { return p.seg.Rule().Priority }
