package mm

import "time"

// balanceLoop is the balance set manager: once a second, and when woken, it advances the lists' clock, matches the record
// frames to the records, and wakes the daemons that have work.
func (s *System) balanceLoop(t *thread) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-t.quit:
			return
		case <-t.wake:
		case <-tick.C:
			s.pfn.Lock()
			s.pfn.Tick()
			s.pfn.Unlock()
			s.pressure.average(time.Now())
			s.giveBackSlots()
			s.wakeForLimits()
		}
		s.balance()
		if s.overLimit() {
			s.trimmer.kick()
		}
		if _, due := s.writeDue(); due {
			s.writer.kick()
		}
	}
}
