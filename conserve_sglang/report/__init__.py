"""Reports: figures as SVG, and pages of HTML that need nothing but themselves."""
