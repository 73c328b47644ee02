package mm

// The host kernel also caches pages that are no file's: real programs map the address spaces of processes (package process),
// which see to their invalidation themselves. Here they are only counted, for they are a part of the host's share.

// AddHostPages notes that the host may hold n more pages of processes, or with n < 0 fewer.
func (s *System) AddHostPages(n int) {
	s.pfn.Lock()
	s.cache.foreign += uint64(n)
	over := n > 0 && s.cache.pages+s.cache.leaving+s.cache.foreign > s.cache.limit
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
